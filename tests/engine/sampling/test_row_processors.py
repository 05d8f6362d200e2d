"""Penalties, bias and bans against plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import Request
from engine.core.rows import rows_of
from engine.interface.sampling_params import SamplingParams
from engine.sampling.logits_processors import apply_typical_p
from engine.sampling.row_processors import needs_processing, process_row
from engine.sampling.token_bitmask import apply_token_bitmask

VOCAB = 12


def request(prompt=(1, 2, 3), answer=(), *, stop=(), grammar_state=None, **params):
    made = Request(
        request_id=0,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=99, **params),
        seed=0,
        choice=0,
        root_hash=b"",
        stop_token_ids=frozenset(stop),
        max_total_tokens=1000,
        grammar_state=grammar_state,
    )
    for token_id in answer:
        made.append(token_id)
    return made


def processed(logits, made):
    row = torch.tensor(logits, dtype=torch.float32)
    [at] = rows_of(made)
    process_row(row, at, apply_token_bitmask)
    return row.tolist()


def banned(made):
    return set(rows_of(made)[0].history.banned_token_ids)


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    prompt=tokens.filter(bool),
    answer=tokens,
    logits=st.lists(st.integers(-20, 20).map(lambda x: x / 4), min_size=VOCAB, max_size=VOCAB),
    repetition=st.sampled_from([1.0, 0.5, 1.3]),
    frequency=st.sampled_from([0.0, -2.0, 0.7]),
    presence=st.sampled_from([0.0, 2.0, -0.3]),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.0, 3.0])),
)
def test_penalties_and_bias_are_what_their_definitions_say(
    prompt, answer, logits, repetition, frequency, presence, bias
):
    expected = []
    for token_id, logit in enumerate(logits):
        if token_id in prompt or token_id in answer:
            logit = logit / repetition if logit > 0 else logit * repetition
        if token_id in answer:
            logit -= frequency * answer.count(token_id) + presence
        expected.append(logit + bias.get(token_id, 0.0))
    made = request(
        prompt,
        answer,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
    )
    assert processed(logits, made) == pytest.approx(expected, abs=1e-4)


def kept(logits):
    return {i for i, x in enumerate(logits) if x > -math.inf}


def test_only_allowed_tokens_are_kept():
    assert kept(processed([0.0] * VOCAB, request(allowed_token_ids=frozenset({2, 5})))) == {2, 5}


def test_stop_tokens_wait_for_min_tokens():
    assert kept(processed([0.0] * VOCAB, request(min_tokens=1, stop=(4,)))) == set(range(VOCAB)) - {4}
    assert not needs_processing(*rows_of(request(answer=(7,), min_tokens=1, stop=(4,))))


def test_a_banned_sequence_loses_its_last_token_where_it_would_be_completed():
    sequences = frozenset({(9,), (5, 6), (5, 6, 7)})
    assert banned(request(banned_sequences=sequences)) == {9}
    assert banned(request(answer=(5,), banned_sequences=sequences)) == {9, 6}
    assert banned(request(answer=(1, 5, 6), banned_sequences=sequences)) == {9, 7}
    assert banned(request(prompt=(5,), banned_sequences=sequences)) == {9}, "the prompt is not the answer"


def test_bans_that_would_leave_nothing_are_not_applied():
    made = request(allowed_token_ids=frozenset({3}), banned_sequences=frozenset({(3,)}))
    assert kept(processed([0.0] * VOCAB, made)) == {3}


class OnlyToken:
    """A grammar that allows one token."""

    is_complete = False
    error = None

    def __init__(self, token_id):
        self.token_id = token_id

    def token_bitmask(self):
        return (1 << self.token_id).to_bytes(4, "little")

    def accept(self, token_id):
        assert token_id == self.token_id


def test_a_grammar_alone_leaves_what_it_allows():
    assert kept(processed([1.0] * VOCAB, request(grammar_state=OnlyToken(5)))) == {5}


def test_a_grammar_wins_where_bans_leave_it_nothing():
    made = request(allowed_token_ids=frozenset({3}), grammar_state=OnlyToken(5))
    assert kept(processed([1.0] * VOCAB, made)) == {5}
    made = request(allowed_token_ids=frozenset({3, 5}), grammar_state=OnlyToken(5))
    assert kept(processed([1.0] * VOCAB, made)) == {5}


def naive_typical(logits, share):
    total = sum(math.exp(x) for x in logits if x > -math.inf)
    logprobs = {i: x - math.log(total) for i, x in enumerate(logits) if x > -math.inf}
    entropy = -sum(math.exp(p) * p for p in logprobs.values())
    distance = {i: abs(-p - entropy) for i, p in logprobs.items()}
    mass, limit = 0.0, 0.0
    for i in sorted(distance, key=distance.get):
        if mass >= share:
            break
        mass, limit = mass + math.exp(logprobs[i]), distance[i]
    return {i for i, d in distance.items() if d <= limit + 1e-6}


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=2, max_size=20),
    removed=st.integers(0, 1),
    share=st.sampled_from([0.07, 0.31, 0.53, 0.89]),
)
def test_typical_p_keeps_the_same_tokens_as_plain_sorting(logits, removed, share):
    if removed:
        logits[0] = -math.inf
    out = apply_typical_p(torch.tensor([logits, logits]), torch.tensor([share, 1.0])).tolist()
    assert kept(out[0]) == naive_typical(logits, share)
    assert out[1] == logits
