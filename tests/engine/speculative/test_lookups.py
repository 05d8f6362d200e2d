"""N-gram drafts over a request's own tokens, and over finished requests of the same tenant."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import Request
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import DraftSource, SpeculationMode, SpeculationParams
from engine.speculative.ngram import NGRAM_SIZES, NgramDrafter, NgramIndex, continuation, match_length
from engine.speculative.ngram_pool import NgramPool


def request(token_ids, answer=(), *, request_id=0, scope=b"a", mode=SpeculationMode.AUTO):
    made = Request(
        request_id=request_id,
        prompt_token_ids=tuple(token_ids),
        params=SamplingParams(max_tokens=1000),
        seed=0,
        choice=0,
        root_hash=scope,
        stop_token_ids=frozenset(),
        max_total_tokens=10_000,
        speculation=SpeculationParams(mode=mode),
    )
    for token_id in answer:
        made.append(token_id)
    return made


def naive_find(token_ids):
    """Search backwards for the longest of the sizes."""
    for size in NGRAM_SIZES:
        if len(token_ids) > size:
            for end in range(len(token_ids) - 1, size - 1, -1):
                if token_ids[end - size : end] == token_ids[-size:]:
                    return end
    return None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 10))
def test_the_index_finds_what_a_search_finds_however_it_grew(token_ids, part):
    index = NgramIndex()
    for end in [*range(part, len(token_ids), part), len(token_ids)]:
        index.update(token_ids[:end])
    assert index.find(token_ids) == naive_find(token_ids)


def test_a_draft_is_what_followed_the_longest_match():
    text = request([1, 2, 3, 4, 5, 6, 9, 2, 3, 7, 1, 2, 3])
    [draft] = NgramDrafter().propose([text], [4])
    assert draft.token_ids == (4, 5, 6, 9), "1 2 3 came before, and beats the later 2 3"
    assert (draft.source, draft.match_length) == (DraftSource.NGRAM, 3)


def test_a_repetition_goes_on_past_the_end():
    [draft] = NgramDrafter().propose([request([8, 1, 2, 1, 2, 1, 2])], [5])
    assert draft.token_ids == (1, 2, 1, 2, 1)
    assert continuation([5, 6, 7], 1, 4) == (6, 7, 6, 7)


def test_nothing_is_proposed_without_a_match():
    assert NgramDrafter().propose([request([1, 2, 3]), request([4], request_id=1)], [4, 4]) == [
        *NgramDrafter().propose([request([5, 6]), request([7], request_id=1)], [4, 4])
    ]


def test_the_match_is_followed_backwards():
    assert match_length([1, 2, 3, 4, 9, 2, 3, 4], [1, 2, 3, 4, 9, 2, 3, 4], 4) == 3
    assert match_length([1, 2], [1, 2], 0) == 0


def test_a_finished_request_is_forgotten():
    drafter, text = NgramDrafter(), request([1, 2, 1, 2])
    drafter.propose([text], [1])
    drafter.finish(text)
    assert drafter._known == {}


ORIGINAL = [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]


@pytest.mark.parametrize(
    ("changed", "goes_on"),
    [
        ([20, 21, 22, 99], (24, 25, 26)),  # 99 for 23
        ([20, 21, 22, 26], (27, 28, 29)),  # 23 to 25 dropped
        ([20, 21, 22, 99, 98, 97], (26, 27, 28)),  # three for three
    ],
)
def test_a_copy_goes_on_after_a_change(changed, goes_on):
    drafter = NgramDrafter()
    for end in range(3, len(changed) + 1):
        [draft] = drafter.propose([request(ORIGINAL, changed[:end])], [3])
    assert draft.token_ids == goes_on
    assert draft.match_length == 1


def test_a_copy_that_has_left_its_original_is_given_up():
    drafter, answer = NgramDrafter(), [20, 21, 22, 99, 98, 97, 96]
    lengths = []
    for end in range(3, len(answer) + 1):
        [draft] = drafter.propose([request(ORIGINAL, answer[:end])], [3])
        lengths.append(len(draft.token_ids))
    assert lengths == [3, 3, 3, 3, 0]
    [draft] = drafter.propose([request(ORIGINAL, [*answer, *range(200, 240), 23, 24])], [3])
    assert draft.token_ids == (25, 26, 27), "and found again"
    [draft] = drafter.propose([request(ORIGINAL, [*answer, *range(200, 240), 23, 24, *range(300, 333)])], [3])
    assert draft.token_ids == (), "too long ago"


PROMPT, ANSWER = [1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]


def pool_with(answer=ANSWER, **settings):
    pool = NgramPool(max_tokens=1000)
    pool.finish(request(PROMPT, answer, **settings))
    return pool


def test_the_same_question_gets_the_same_answer_as_draft():
    pool = pool_with()
    [first] = pool.propose([request(PROMPT, request_id=1)], [4])
    assert first.token_ids == (10, 11, 12, 13)
    assert (first.source, first.match_length) == (DraftSource.NGRAM_POOL, 5)
    [later] = pool.propose([request([99], [12, 10, 11, 12, 13], request_id=1)], [8])
    assert later.token_ids == (14, 15)


def test_other_tenants_learn_nothing():
    pool = pool_with(scope=b"a")
    [draft] = pool.propose([request(PROMPT, request_id=1, scope=b"b")], [4])
    assert draft.token_ids == ()


def test_requests_without_speculation_leave_nothing():
    assert pool_with(mode=SpeculationMode.OFF).num_tokens == 0
    assert pool_with(answer=[1]).num_tokens == 0


@pytest.mark.parametrize("same", [True, False])
def test_memory_is_bounded_and_the_oldest_leave_first(same):
    pool = NgramPool(max_tokens=100)
    for number in range(50):
        answer = ANSWER if same else range(100 * number, 100 * number + 20)
        pool.finish(request(PROMPT, answer, request_id=number, scope=bytes([number % 3])))
        assert pool.num_tokens <= 100
    entries = sum(map(len, pool._places.values()))
    assert 0 < entries <= 100
    newest = request([1], [1, *answer][:6], request_id=99, scope=bytes([49 % 3]))
    [draft] = pool.propose([newest], [3])
    assert draft.token_ids == tuple(answer)[5:8][: len(draft.token_ids)] != ()
    while pool._texts:
        pool._forget_oldest()
    assert (pool.num_tokens, pool._places) == (0, {})


def test_an_answer_longer_than_the_pool_is_cut():
    pool = NgramPool(max_tokens=10)
    pool.finish(request([1], range(100)))
    assert pool.num_tokens == 10


def predicting(prediction, prompt, answer):
    made = request(prompt, answer)
    made.prediction = tuple(prediction)
    return made


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([50], (51, 52, 53)),  # shorter than an n-gram, but the prediction's beginning
        ([50, 51, 52, 53, 54, 55], (56, 57, 58)),
        ([7, 8, 9, 55, 56], (57, 58, 59)),  # found in the middle
        ([99], ()),
        ([99, 98], ()),
    ],
)
def test_a_prediction_is_looked_up_from_its_beginning(answer, expected):
    [draft] = NgramDrafter().propose([predicting(range(50, 70), [1, 2, 3], answer)], [3])
    assert draft.token_ids == expected


def test_a_prediction_goes_on_behind_a_changed_word():
    drafter, text = NgramDrafter(), predicting(range(50, 70), [1, 2, 3], [50, 51, 52, 53])
    drafter.propose([text], [3])
    text.append(99)
    [draft] = drafter.propose([text], [3])
    assert draft.token_ids == (55, 56, 57)
