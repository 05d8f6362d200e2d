"""Steps that are launched before the tokens of the last one are read: the same tokens, at every depth."""

import pickle
import random

import pytest

from engine.core.request import RequestStatus
from engine.interface.errors import ConfigError
from engine.interface.outputs import FinishReason
from tests.drafters import asking, byte_engine
from tests.engine.speculative.test_identity import differing, requests, run
from tests.engine.test_same_tokens import mixed_requests
from tests.tiny import GPT2, LLAMA, generate, generation, run_to_end, scripted_engine, tiny_engine

DEPTHS = pytest.mark.parametrize("steps_ahead", [0, 1, 2])
MODELS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])


def torch_engine(config=LLAMA, **settings):
    return tiny_engine(config, kernels="torch", **settings)


@DEPTHS
@MODELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_together_cold_warm_in_chunks_and_preempted(config, dtype, steps_ahead):
    alone = [
        generate(torch_engine(config, dtype=dtype, enable_prefix_caching=False).engine, request)[0]
        for request in mixed_requests()
    ]
    settings = {"dtype": dtype, "steps_ahead": steps_ahead}
    loaded = torch_engine(config, **settings)
    assert generate(loaded.engine, *mixed_requests()) == alone, "cold"
    assert generate(loaded.engine, *mixed_requests()) == alone, "warm"
    for budget in (16, 37):
        chunked = torch_engine(config, max_num_batched_tokens=budget, **settings).engine
        assert generate(chunked, *mixed_requests()) == alone, f"prompts in chunks of {budget}"
    block_bytes = loaded.info.kv_cache_bytes // loaded.info.num_kv_blocks
    tight = torch_engine(config, kv_cache_memory=20 * block_bytes, max_model_len=240, **settings).engine
    assert generate(tight, *mixed_requests()) == alone, "preempted"
    assert tight.stats().num_preemptions > 0


@DEPTHS
@pytest.mark.parametrize("mode", ["off", "ngram", "auto"])
def test_every_parameter_and_every_kind_of_draft(mode, steps_ahead):
    engines = [byte_engine(kernels="torch", steps_ahead=depth) for depth in (0, steps_ahead)]
    expected = run(engines[0], requests())
    asked = [asking(r, mode if i % 3 else "off", 3 if i % 2 else None) for i, r in enumerate(requests())]
    assert differing(run(engines[1], asked), expected) == []
    for engine in engines:
        engine.close()


def test_steps_do_run_ahead_and_wasted_rows_harm_nobody():
    engine = scripted_engine(steps_ahead=2, eos_token_ids=frozenset({15}))
    ends = engine.add_request(generation([10], max_tokens=30))
    goes_on = engine.add_request(generation([40], max_tokens=20))
    engine.step()
    engine.check_invariants()  # brings the counters up to date
    assert (goes_on.num_in_flight, goes_on.num_output_tokens) == (2, 1)
    run_to_end(engine)
    engine.check_invariants()
    assert ends.token_ids == [10, 11, 12, 13, 14, 15]
    assert goes_on.token_ids == list(range(40, 61))
    wasted = sum(n for batch in engine.executor.batches for i, n in batch if i == 0) - 5
    assert wasted == 2, "rows that were under way when the end came"
    assert all(count == 1 for batch in engine.executor.batches for _, count in batch)


def test_who_needs_the_tokens_on_the_host_is_waited_for():
    engine = scripted_engine(steps_ahead=2)
    engine.add_request(generation([10], max_tokens=9))
    penalised = engine.add_request(generation([40], max_tokens=9, frequency_penalty=0.1))
    while engine.has_work:
        engine.step()
        assert penalised.num_in_flight == 0


@pytest.mark.parametrize("leaves", ["ends", "is aborted", "is preempted"])
def test_others_run_ahead_again_when_who_needs_the_tokens_is_gone(leaves):
    engine = scripted_engine(steps_ahead=2)
    other = engine.add_request(generation([10], max_tokens=40))
    penalised = engine.add_request(generation([40], max_tokens=3, frequency_penalty=0.1))
    engine.step()
    if leaves == "is preempted":
        engine.scheduler._preempt(penalised)
        assert engine.scheduler.can_run_ahead
    elif leaves == "is aborted":
        engine.abort(penalised)
    else:
        while penalised.finish_reason is None:
            engine.step()
    if leaves != "is preempted":
        engine.step()
        engine.check_invariants()  # brings the counters up to date
        assert other.num_in_flight == 2
    run_to_end(engine)
    assert other.token_ids == list(range(10, 51))


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_prompt_of_one_token_chooses_one_where_one_is_wanted(max_tokens):
    engine = scripted_engine()
    engine.add_request(generation([10], max_tokens=max_tokens, prompt_logprobs=0))
    [chunk] = engine.scheduler.dispatch(engine.scheduler.schedule()).chunks
    assert (len(chunk.rows), chunk.ends_request) == (max_tokens, max_tokens == 0)


@DEPTHS
def test_no_token_is_computed_behind_the_longest_answer(steps_ahead):
    engine = scripted_engine(steps_ahead=steps_ahead, max_model_len=16, num_blocks=4)
    request = engine.add_request(generation([1, 2, 3], max_tokens=13))
    run_to_end(engine)
    assert request.token_ids == list(range(1, 17))
    assert sum(n for batch in engine.executor.batches for _, n in batch) == 15


@DEPTHS
def test_random_arrivals_aborts_and_preemptions_in_flight(steps_ahead):
    rng = random.Random(steps_ahead)
    engine = scripted_engine(
        steps_ahead=steps_ahead, num_blocks=14, max_model_len=48, max_num_seqs=8, max_num_batched_tokens=24
    )
    shared, live, ended = list(range(20)), [], []
    for _ in range(1500):
        if rng.random() < 0.4:
            prompt = shared[: rng.randrange(1, 20)] + [rng.randrange(100) for _ in range(rng.randrange(1, 9))]
            live.append(engine.add_request(generation(prompt, max_tokens=rng.randrange(1, 18))))
        if live and rng.random() < 0.05:
            engine.abort(rng.choice(live))
        engine.step()
        engine.check_invariants()
        ended += [r for r in live if r.status is RequestStatus.FINISHED]
        live = [r for r in live if r.status is not RequestStatus.FINISHED]
    run_to_end(engine)
    engine.check_invariants()
    assert engine.stats().num_preemptions > 20
    assert engine.kv_cache_manager.pool.num_free == 14
    assert sum(r.finish_reason is FinishReason.ABORT for r in ended) > 50
    for request in [*ended, *live]:
        last = request.token_ids[request.num_prompt_tokens - 1]
        answer = request.token_ids[request.num_prompt_tokens :]
        assert answer == [(last + 1 + i) % 100 for i in range(len(answer))]


def test_the_blocks_of_a_request_that_left_wait_for_its_steps():
    engine = scripted_engine(steps_ahead=2, num_blocks=8, max_model_len=32)
    request = engine.add_request(generation(range(6), max_tokens=20))
    engine.step()
    held = len(request.block_table)
    engine.abort(request)
    assert engine.kv_cache_manager.pool.num_free == 8 - held, "steps under way write there"
    engine.check_invariants()
    run_to_end(engine)
    assert engine.kv_cache_manager.pool.num_free == 8
    again = engine.add_request(generation(range(6), max_tokens=1))
    run_to_end(engine)
    assert again.num_cached_tokens == 5


@DEPTHS
def test_a_batch_says_the_same_whatever_becomes_of_its_requests(steps_ahead):
    """A live read in a chunk would say something else once its step is over."""
    engine = byte_engine(kernels="torch", steps_ahead=steps_ahead, kv_cache_memory=2**18, max_model_len=200)
    launched = []
    launch = engine.executor.launch

    def remember(batch):
        launched.append((batch, pickle.dumps(batch)))
        return launch(batch)

    engine.executor.launch = remember
    generations = [asking(r, "ngram", 3) for r in requests()]
    added = [engine.add_request(request) for request in generations]
    for number in range(12):
        engine.step()
        if number == 6:
            engine.abort(added[2])
    run_to_end(engine)
    engine.close()
    assert len(launched) > 20
    for batch, before in launched:
        assert pickle.dumps(batch) == before
        assert pickle.loads(before) == batch


def test_the_executor_keeps_the_tokens_of_no_more_steps_than_may_be_under_way():
    engine = byte_engine(kernels="torch", steps_ahead=2)
    for number in range(6):
        generate(engine, generation([number, 7], max_tokens=4), generation([9, number], max_tokens=6))
    assert len(engine.executor._latest_tokens) == 2
    assert sum(map(len, engine.executor._latest_tokens)) <= 4
    engine.close()


def test_steps_ahead_are_refused_where_nothing_runs_ahead():
    with pytest.raises(ConfigError, match="steps_ahead 1 needs kernels 'torch'"):
        tiny_engine(steps_ahead=1)


def test_a_step_without_work_leaves_no_step_under_way():
    engine = scripted_engine()
    assert engine.step() == []
    assert engine.stats().seconds_since_step == 0.0


def test_the_snapshot_is_idle_after_the_last_step_of_an_aborted_request():
    """/ready would call it stalled after a minute."""
    engine = scripted_engine(steps_ahead=1)
    request = engine.add_request(generation([1], max_tokens=50))
    engine.step()
    engine.abort(request)
    assert engine.has_work
    assert engine.step() == []
    engine.check_invariants()


@DEPTHS
def test_a_prompt_that_is_only_scored_runs_once_to_its_end(steps_ahead):
    engine = torch_engine(max_num_batched_tokens=16, steps_ahead=steps_ahead).engine
    request = engine.add_request(generation(list(range(90)), max_tokens=0, prompt_logprobs=1))
    other = engine.add_request(generation([7, 8, 9], max_tokens=20))
    run_to_end(engine)
    engine.check_invariants()
    assert [score.token_id for score in request.prompt_logprobs] == list(range(1, 90))
    assert other.num_output_tokens == 20
