"""Scheduler and KV cache manager through the engine, with a scripted model and blocks of 4 tokens."""

import random

import pytest

from engine.core.request import RequestStatus
from engine.interface.batch import BlockCopy
from engine.interface.errors import RequestError
from engine.interface.outputs import FinishReason
from tests.tiny import generate, generation, run_to_end, scripted_engine


def test_a_prompt_is_cut_into_chunks_and_decodes_ride_along():
    engine = scripted_engine(max_num_batched_tokens=8)
    engine.add_request(generation([1, 2], max_tokens=4))
    engine.step()
    engine.add_request(generation(range(20), max_tokens=1))
    run_to_end(engine)
    assert engine.executor.batches == [
        [(0, 2)],
        [(0, 1), (1, 7)],
        [(0, 1), (1, 7)],
        [(0, 1), (1, 6)],
    ]


def test_answers_do_not_depend_on_the_token_budget():
    prompts = [range(5), range(17), range(3, 40)]
    answers = [
        generate(scripted_engine(max_num_batched_tokens=budget), *(generation(p) for p in prompts))
        for budget in (1, 3, 16, 64)
    ]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(("length", "cached"), [(1, 0), (2, 1), (4, 3), (5, 4), (8, 7), (9, 8), (11, 10)])
def test_the_last_prompt_token_is_always_recomputed(length, cached):
    engine = scripted_engine()
    generate(engine, generation(range(length)))
    again = engine.add_request(generation(range(length)))
    run_to_end(engine)
    assert again.num_cached_tokens == cached
    assert engine.stats().prefix_cache_hits == cached
    assert engine.stats().prefix_cache_queries == 2 * length


def test_answers_are_cached_too():
    engine = scripted_engine()
    [answer] = generate(engine, generation(range(6), max_tokens=7))
    follow_up = engine.add_request(generation([*range(6), *answer, 50, 51]))
    run_to_end(engine)
    assert follow_up.num_cached_tokens == 12  # 13 tokens, of which the last has no KV


def test_requests_that_arrive_together_compute_a_shared_prefix_once():
    engine = scripted_engine(max_num_batched_tokens=64)
    requests = [engine.add_request(generation([*range(24), 90 + i])) for i in range(4)]
    run_to_end(engine)
    assert [request.num_cached_tokens for request in requests] == [0, 24, 24, 24]
    assert sum(n for batch in engine.executor.batches[:2] for _, n in batch) == 25 + 3 + 1


def test_a_waiting_sibling_goes_on_when_the_owner_of_the_prefix_is_aborted():
    engine = scripted_engine(max_num_batched_tokens=8)
    owner = engine.add_request(generation(range(24)))
    sibling = engine.add_request(generation(range(24)))
    engine.step()
    assert sibling.status is RequestStatus.WAITING
    engine.abort(owner)
    run_to_end(engine)
    assert sibling.num_cached_tokens == 8  # what the owner had published before it left
    assert sibling.finish_reason is FinishReason.LENGTH
    engine.check_invariants()


def test_other_salts_never_hit_and_the_same_salt_does():
    engine = scripted_engine()
    generate(engine, generation(range(12), salt=b"a"))
    other = engine.add_request(generation(range(12), salt=b"b"))
    same = engine.add_request(generation(range(12), salt=b"a"))
    run_to_end(engine)
    assert other.num_cached_tokens == 0
    assert same.num_cached_tokens == 11


def test_a_block_is_copied_within_a_salt_only():
    engine = scripted_engine()
    generate(engine, generation([1, 2, 3], salt=b"a", max_tokens=1))
    others = [engine.add_request(generation([1, 2, 3, 4], salt=salt, max_tokens=1)) for salt in (b"b", b"a")]
    run_to_end(engine)
    assert [other.num_cached_tokens for other in others] == [0, 3]


@pytest.mark.parametrize("num_common", range(1, 8))
def test_a_prompt_that_goes_on_differently_within_a_block_copies_what_it_shares(num_common):
    engine = scripted_engine()
    generate(engine, generation([*range(10, 17), 50, 60]))
    other = engine.add_request(generation([*range(10, 10 + num_common), 70, 80, 90]))
    run_to_end(engine)
    assert other.num_cached_tokens == num_common
    first = engine.executor.batches[-8]
    assert first == [(1, other.num_prompt_tokens - num_common)]


def test_choices_copy_the_end_of_their_prompt_from_the_one_that_still_runs():
    engine = scripted_engine()
    choices = [engine.add_request(generation(range(10, 17), choice=i, max_tokens=20)) for i in range(3)]
    run_to_end(engine)
    assert [choice.num_cached_tokens for choice in choices] == [0, 6, 6]
    assert engine.executor.batches[1] == [(0, 1), (1, 1), (2, 1)]


def test_copies_are_ordered_before_the_step_and_never_of_a_block_onto_itself():
    engine = scripted_engine(num_blocks=3, max_model_len=12)
    generate(engine, generation([1, 2, 3, 4, 5, 6], max_tokens=1))
    engine.add_request(generation([1, 2, 3, 4, 5, 9], max_tokens=1))
    batch = engine.scheduler.dispatch(engine.scheduler.schedule())
    assert batch.block_copies == (BlockCopy(source=1, target=2),)
    engine.scheduler.commit(batch, engine.executor.launch(batch).result())

    tight = scripted_engine(num_blocks=2, max_model_len=8)
    generate(tight, generation([1, 2, 3, 4, 5, 6], max_tokens=1))
    again = tight.add_request(generation([1, 2, 3, 4, 5, 9], max_tokens=1))
    schedule = tight.scheduler.schedule()
    assert again.num_computed_tokens == 5
    batch = tight.scheduler.dispatch(schedule)
    assert batch.block_copies == ()  # the only free block is the one that holds the tail
    tight.scheduler.commit(batch, tight.executor.launch(batch).result())
    tight.check_invariants()


def test_prefix_caching_can_be_switched_off():
    engine = scripted_engine(enable_prefix_caching=False)
    generate(engine, generation(range(12)))
    again = engine.add_request(generation(range(12)))
    run_to_end(engine)
    assert again.num_cached_tokens == 0
    assert engine.stats().prefix_cache_queries == 0


def test_under_pressure_the_youngest_is_preempted_and_answers_stay_the_same():
    prompts = [range(i, i + 10) for i in (0, 30, 60)]
    roomy = generate(scripted_engine(), *(generation(p, max_tokens=12) for p in prompts))
    tight = scripted_engine(num_blocks=8, max_model_len=32)
    requests = [tight.add_request(generation(p, max_tokens=12)) for p in prompts]
    while tight.has_work:
        tight.step()
        tight.check_invariants()
    assert [r.token_ids[10:] for r in requests] == roomy
    assert tight.stats().num_preemptions > 0
    assert tight.kv_cache_manager.pool.num_free == 8


def test_first_come_first_served():
    engine = scripted_engine(max_num_seqs=2)
    requests = [engine.add_request(generation([i], max_tokens=3)) for i in range(5)]
    finished = []
    while engine.has_work:
        finished += [t.request.request_id for t in engine.step() if t.request.finish_reason]
    assert finished == [request.request_id for request in requests]


def test_stop_beats_length_when_both_come_with_the_same_token():
    engine = scripted_engine()
    request = engine.add_request(generation([10], max_tokens=3, stop_token_ids=frozenset({13})))
    run_to_end(engine)
    assert request.token_ids == [10, 11, 12, 13]
    assert request.finish_reason is FinishReason.STOP


def test_end_tokens_end_unless_ignored():
    engine = scripted_engine(eos_token_ids=frozenset({12}))
    stopped, ignored = (
        engine.add_request(generation([10], max_tokens=4, ignore_eos=ignore)) for ignore in (False, True)
    )
    run_to_end(engine)
    assert (stopped.token_ids, stopped.finish_reason) == ([10, 11, 12], FinishReason.STOP)
    assert (ignored.num_output_tokens, ignored.finish_reason) == (4, FinishReason.LENGTH)


def test_abort_in_every_state_gives_every_block_back():
    engine = scripted_engine(num_blocks=16, max_model_len=64, max_num_batched_tokens=8, max_num_seqs=2)
    decoding = engine.add_request(generation([1, 2, 3], max_tokens=20))
    prefilling = engine.add_request(generation(range(30), max_tokens=20))
    queued = engine.add_request(generation(range(40, 60)))
    engine.step()
    engine.step()
    assert decoding.num_output_tokens == 2
    assert 0 < prefilling.num_computed_tokens < 30
    for request in (queued, prefilling, decoding, decoding, queued):  # the last two have ended already
        engine.abort(request)
        engine.check_invariants()
        assert request.finish_reason is FinishReason.ABORT
    assert not engine.has_work
    assert engine.kv_cache_manager.pool.num_free == 16
    assert engine.stats().requests_finished == {FinishReason.ABORT: 3}
    [answer] = generate(engine, generation(range(30), max_tokens=3))  # the partial prefill poisoned nothing
    assert answer == [30, 31, 32]


def test_an_abort_after_the_end_changes_nothing():
    engine = scripted_engine()
    request = engine.add_request(generation([1], max_tokens=1))
    run_to_end(engine)
    engine.abort(request)
    assert request.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        (generation([]), "prompt", "at least one token"),
        (generation(range(99), max_tokens=30), "max_tokens", r"prompt \(99 tokens\).*\(30\).*128"),
        (generation([0] * 128, max_tokens=1), "prompt", r"prompt \(128 tokens\)"),
        (generation([100]), "prompt", "token id 100 is not between 0 and 99"),
        (generation([-1]), "prompt", "token id -1"),
        (
            generation([1], stop_token_ids=frozenset({2**63})),
            "stop_token_ids",
            "token id 9223372036854775808",
        ),
    ],
)
def test_a_request_that_could_never_run_is_refused_at_the_door(request_, param, message):
    engine = scripted_engine()
    with pytest.raises(RequestError, match=message) as caught:
        engine.add_request(request_)
    assert caught.value.param == param
    assert not engine.has_work


def test_the_whole_context_can_be_used_to_the_last_token():
    engine = scripted_engine()
    request = engine.add_request(generation(range(100), max_tokens=28))
    run_to_end(engine)
    assert request.num_tokens == 128


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_random_operations_keep_every_promise(seed):
    """Random arrivals, aborts and steps on a small pool; each answer is what its prompt alone decides."""
    rng = random.Random(seed)
    engine = scripted_engine(num_blocks=12, max_model_len=40, max_num_seqs=4, max_num_batched_tokens=11)
    alive, finished = [], 0
    for _ in range(3_000):
        action = rng.random()
        if action < 0.15 and len(alive) < 12:
            start = rng.choice([0, 0, 0, 50])
            prompt = [
                *range(start, start + rng.randrange(1, 25)),
                *rng.choices(range(100), k=rng.randrange(3)),
            ]
            alive.append(engine.add_request(generation(prompt, max_tokens=rng.randrange(1, 12))))
        elif action < 0.2 and alive:
            engine.abort(alive.pop(rng.randrange(len(alive))))
        elif engine.has_work:
            engine.step()
        engine.check_invariants()
        for request in [r for r in alive if r.finish_reason]:
            expected = request.prompt_token_ids[-1]
            answer = request.token_ids[request.num_prompt_tokens :]
            assert answer == [(expected + 1 + i) % 100 for i in range(request.params.max_tokens)]
            alive.remove(request)
            finished += 1
    run_to_end(engine)
    assert finished > 100
    assert engine.kv_cache_manager.pool.num_free == 12
