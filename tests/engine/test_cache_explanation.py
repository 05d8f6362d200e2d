"""Why a prompt's cached part ends where it does: each reason, and what a naive comparison says."""

import random
from dataclasses import replace

import pytest

from engine.interface.cache_explanation import CacheEnd
from engine.kv_cache.block import Block
from engine.kv_cache.evicted_blocks import EvictedBlocks
from tests.tiny import generation, run_to_end, scripted_engine

SIZE = 4
A = list(range(10, 22))  # three blocks


def explained(engine, prompt, **params):
    """The explanation of a request that runs now; a lookup before it says the same and changes nothing."""
    request = replace(generation(prompt, **{"max_tokens": 1} | params), explain_cache=True)
    before = state_of(engine)
    looked_up = engine.look_up_cache(request)
    assert state_of(engine) == before
    added = engine.add_request(request)
    run_to_end(engine)
    engine.check_invariants()
    explanation = added.cache_explanation
    assert explanation.num_cached_tokens == added.num_cached_tokens
    if not added.params.prompt_logprobs:
        assert looked_up == explanation
    return explanation


def state_of(engine):
    pool = engine.kv_cache_manager.pool
    blocks = [(b.ref_count, b.block_hash, b.parent_hash, b.token_ids) for b in pool.blocks]
    return blocks, list(pool._free), len(pool.evicted), engine.stats()


def end_of(explanation):
    return (
        explanation.num_cached_tokens,
        explanation.end,
        explanation.cached_token_id,
        explanation.prompt_token_id,
    )


def test_never_seen_then_the_whole_prompt_but_its_last_token():
    engine = scripted_engine(block_size=SIZE)
    first = explained(engine, A)
    assert end_of(first) == (0, CacheEnd.NEVER_SEEN, None, None)
    assert (first.num_prompt_tokens, first.block_size) == (12, 4)
    assert end_of(explained(engine, A)) == (11, CacheEnd.END_OF_PROMPT, None, None)
    assert end_of(explained(engine, [50])) == (0, CacheEnd.END_OF_PROMPT, None, None)


@pytest.mark.parametrize("place", [0, 3, 4, 6, 7, 8, 10])
def test_a_different_token_is_named_wherever_in_a_block_it_stands(place):
    engine = scripted_engine(block_size=SIZE)
    explained(engine, A)
    other = [*A[:place], 77, *A[place + 1 :]]
    assert end_of(explained(engine, other)) == (place, CacheEnd.DIFFERENT_TOKEN, A[place], 77)


def test_the_last_token_is_no_difference():
    engine = scripted_engine(block_size=SIZE)
    explained(engine, A)
    assert explained(engine, [*A[:11], 77]).end is CacheEnd.END_OF_PROMPT


def test_a_prompt_that_goes_on_behind_all_that_is_known():
    engine = scripted_engine(block_size=SIZE)
    explained(engine, A[:6], max_tokens=1)
    assert end_of(explained(engine, A)) == (6, CacheEnd.NEVER_SEEN, None, None)
    longer = [*A, 50, 51]
    assert end_of(explained(engine, longer)) == (12, CacheEnd.NEVER_SEEN, None, None)


def test_an_answer_is_known_too():
    engine = scripted_engine(lambda tokens: tokens[-1] + 1, block_size=SIZE)
    explained(engine, A[:5], max_tokens=4)  # says 15, 16, 17, 18, of which the last is not computed
    assert end_of(explained(engine, [*A[:7], 60, 61])) == (7, CacheEnd.DIFFERENT_TOKEN, 17, 60)
    assert end_of(explained(engine, [*A[:9]])) == (8, CacheEnd.END_OF_PROMPT, None, None)


@pytest.mark.parametrize("num_tokens", [5, 6, 8, 9, 12])
def test_what_made_room_was_evicted_whole_blocks_and_tails(num_tokens):
    engine = scripted_engine(block_size=SIZE, num_blocks=4, max_model_len=16)
    prompt = A[:num_tokens]
    explained(engine, prompt, max_tokens=3)
    explained(engine, range(80, 95), max_tokens=1)  # takes all four blocks
    gone = explained(engine, prompt, max_tokens=3)
    assert end_of(gone) == (0, CacheEnd.EVICTED, None, None)
    assert explained(engine, prompt, max_tokens=3).end is CacheEnd.END_OF_PROMPT  # forgotten when it is back


def test_a_tail_that_made_room_before_its_head():
    engine = scripted_engine(block_size=SIZE, num_blocks=4, max_model_len=16)
    explained(engine, A)
    explained(engine, [90, 91], max_tokens=1)
    explained(engine, [95, 96], max_tokens=1)  # one block was free, then A's last
    assert end_of(explained(engine, A)) == (8, CacheEnd.EVICTED, None, None)
    assert end_of(explained(engine, [*A[:9], 70, 71])) == (9, CacheEnd.DIFFERENT_TOKEN, A[9], 70)


def test_what_was_evicted_and_is_cached_with_other_tokens():
    engine = scripted_engine(block_size=SIZE, num_blocks=4, max_model_len=16)
    explained(engine, A)
    explained(engine, range(80, 95), max_tokens=1)
    explained(engine, [A[0], 33, 34], max_tokens=1)
    assert end_of(explained(engine, A[:6])) == (1, CacheEnd.EVICTED, None, None)
    assert end_of(explained(engine, [A[0], 40, 41])) == (1, CacheEnd.DIFFERENT_TOKEN, A[1], 40)


def test_without_a_cache_and_for_a_prompt_that_is_scored():
    engine = scripted_engine(block_size=SIZE, enable_prefix_caching=False)
    explained(engine, A)
    assert end_of(explained(engine, A)) == (0, CacheEnd.DISABLED, None, None)
    engine = scripted_engine(block_size=SIZE)
    explained(engine, A)
    scored = replace(generation(A, max_tokens=1, prompt_logprobs=1), explain_cache=True)
    assert engine.look_up_cache(scored).end is CacheEnd.NOT_USED


def test_salts_know_nothing_of_each_other():
    engine = scripted_engine(block_size=SIZE)
    explained(engine, A, salt=b"one")
    assert end_of(explained(engine, A, salt=b"two")) == (0, CacheEnd.NEVER_SEEN, None, None)
    assert end_of(explained(engine, [*A[:5], 77, 78], salt=b"one")) == (5, CacheEnd.DIFFERENT_TOKEN, 15, 77)
    assert end_of(explained(engine, [*A[:5], 77, 78], salt=b"three")) == (0, CacheEnd.NEVER_SEEN, None, None)


def test_the_first_explanation_stands_after_a_preemption():
    engine = scripted_engine(block_size=SIZE, num_blocks=6, max_model_len=24)
    requests = [replace(generation([20 + i, 30], max_tokens=14), explain_cache=True) for i in range(2)]
    added = [engine.add_request(request) for request in requests]
    run_to_end(engine)
    assert engine.stats().num_preemptions > 0
    assert [end_of(request.cache_explanation) for request in added] == [
        (0, CacheEnd.NEVER_SEEN, None, None)
    ] * 2


def test_only_who_asks_gets_one():
    engine = scripted_engine(block_size=SIZE)
    request = engine.add_request(generation(A))
    run_to_end(engine)
    assert request.cache_explanation is None


class NaiveCache:
    """Whole token sequences in place of hashes and blocks: what came last behind each whole-block prefix."""

    def __init__(self):
        self.blocks = set()
        self.continuations = {}

    def run(self, salt, prompt, computed):
        """Take in a request: what stood when its prompt was computed, and when it left."""
        start = self.num_shared(salt, prompt)
        for end in (len(prompt), len(computed)):
            for first in range(start, end, SIZE):
                prefix, tokens = (salt, *computed[:first]), tuple(computed[first : min(first + SIZE, end)])
                earlier = self.continuations.get(prefix, ())
                if earlier[: len(tokens)] != tokens:
                    self.continuations[prefix] = tokens
            start = end - end % SIZE
        self.blocks |= {(salt, *computed[:end]) for end in range(SIZE, len(computed) + 1, SIZE)}

    def num_shared(self, salt, prompt):
        """Tokens of whole blocks that come from the cache; the last token of the prompt never does."""
        position = 0
        while position + SIZE < len(prompt) and (salt, *prompt[: position + SIZE]) in self.blocks:
            position += SIZE
        return position

    def explain(self, salt, prompt):
        position = self.num_shared(salt, prompt)
        known = self.continuations.get((salt, *prompt[:position]), ())
        for place, token in enumerate(known):
            if position == len(prompt) - 1:
                break
            if token != prompt[position]:
                return position, CacheEnd.DIFFERENT_TOKEN, known[place], prompt[position]
            position += 1
        is_end = position >= len(prompt) - 1
        return position, CacheEnd.END_OF_PROMPT if is_end else CacheEnd.NEVER_SEEN, None, None


def random_requests(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        prompt = [rng.randrange(2) for _ in range(rng.randrange(1, 15))]
        yield rng.choice([b"", b"x"]), prompt, rng.randrange(1, 8)


def next_token(tokens):
    return sum(tokens) % 2


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_a_naive_comparison_of_all_earlier_prompts(seed):
    engine, naive = scripted_engine(next_token, block_size=SIZE, num_blocks=4096), NaiveCache()
    reasons = set()
    for salt, prompt, max_tokens in random_requests(seed, 120):
        expected = naive.explain(salt, prompt)
        request = replace(generation(prompt, salt=salt, max_tokens=max_tokens), explain_cache=True)
        added = engine.add_request(request)
        run_to_end(engine)
        assert end_of(added.cache_explanation) == expected
        reasons.add(expected[1])
        naive.run(salt, prompt, added.token_ids[:-1])
    assert len(reasons) == 3


@pytest.mark.parametrize("seed", range(6))
def test_what_it_says_of_a_small_cache_is_true(seed):
    engine = scripted_engine(next_token, block_size=SIZE, num_blocks=7, max_model_len=24)
    computed, reasons = [], set()
    for salt, prompt, max_tokens in random_requests(seed, 200):
        found = explained(engine, prompt, salt=salt, max_tokens=max_tokens)
        position, reason, cached, own = end_of(found)
        mine = [tokens for other, tokens in computed if other == salt]

        def was_computed(tokens, mine=mine):
            return any(one[: len(tokens)] == tokens for one in mine)

        assert was_computed(prompt[:position]) or position == 0
        if reason is CacheEnd.DIFFERENT_TOKEN:
            assert was_computed([*prompt[:position], cached])
            assert own == prompt[position] != cached
        elif reason is CacheEnd.EVICTED:
            assert was_computed(prompt[: position + 1])
        reasons.add(reason)
        answer = list(prompt)
        for _ in range(max_tokens - 1):
            answer.append(next_token(answer))
        computed.append((salt, answer))
    assert reasons >= {CacheEnd.DIFFERENT_TOKEN, CacheEnd.EVICTED, CacheEnd.END_OF_PROMPT}


def test_the_memory_of_evicted_blocks_is_bounded_and_keeps_the_latest():
    evicted = EvictedBlocks(3)
    for number in range(10):
        name = bytes([number])
        evicted.add(Block(number, block_hash=name, parent_hash=b"p" + name, token_ids=(number, 1)))
    assert len(evicted) == 3
    assert [evicted.had_full_block(bytes([n])) for n in (6, 7, 9)] == [False, True, True]
    assert [evicted.had_tokens(b"p" + bytes([n]), [n]) for n in (6, 7, 9)] == [False, True, True]
    evicted.forget_partial_block(b"p\x07", (7,))  # the other token is still gone
    assert evicted.had_tokens(b"p\x07", (7, 1))
    evicted.forget_partial_block(b"p\x07", (7, 1, 2))
    evicted.forget_full_block(b"\x07")
    assert not evicted.had_tokens(b"p\x07", (7, 1))
    assert not evicted.had_full_block(b"\x07")
