"""A step that raises ends the request that makes it raise; all others get the tokens that they get alone."""

import random

import pytest

from engine.core.continuation import expand
from engine.core.executor import FinishedStep
from engine.interface.batch import Batch, Continuation
from engine.interface.outputs import FinishReason
from engine.interface.pooling import Pooling
from tests.engine.test_same_tokens import mixed_requests
from tests.tiny import generate, generation, run_to_end, scripted_engine, tiny_engine

POISON = 99
DEPTHS = pytest.mark.parametrize("steps_ahead", [0, 1, 2])


class Poisoned:
    """An executor whose steps fail with any batch that has the token; says how often."""

    def __init__(self, executor, token=POISON):
        self._executor, self._token = executor, token
        self.steps_ahead, self.max_draft_positions = executor.steps_ahead, executor.max_draft_positions
        self.continues = executor.continues
        self._launched, self._latest = Batch(()), {}
        self.num_failed = 0
        self.fails_late = False  # when the result is asked for, as on a GPU

    def launch(self, batch):
        if isinstance(batch, Continuation):
            batch = expand(self._launched, batch)
            chunks = [chunk._replace(token_ids=(self._latest[chunk.request_id],)) for chunk in batch.chunks]
            batch = Batch(tuple(chunks))
        self._launched = batch
        if any(self._token in chunk.token_ids for chunk in batch.chunks):
            self.num_failed += 1
            if self.fails_late:
                return self
            self.result()
        step = self._executor.launch(batch)
        sampled = [chunk.request_id for chunk in batch.chunks for _ in chunk.rows]
        self._latest.update(zip(sampled, step.output.token_ids, strict=True))
        return step

    def result(self):
        raise RuntimeError("scripted")

    def draft(self, jobs):
        return self._executor.draft(jobs)


def poison(engine, *, late=False):
    engine.executor = Poisoned(engine.executor)
    engine.executor.fails_late = late
    return engine


def prompts(rng, count):
    return [[rng.randrange(POISON) for _ in range(rng.randrange(1, 30))] for _ in range(count)]


@DEPTHS
@pytest.mark.parametrize("late", [False, True])
def test_the_one_that_fails_ends_and_the_others_answer_as_ever(steps_ahead, late):
    requests = [generation(prompt, max_tokens=9, seed=i, temperature=1.0) for i, prompt in enumerate(
        prompts(random.Random(1), 6))]  # fmt: skip
    settings = {"kernels": "torch", "steps_ahead": steps_ahead, "max_num_batched_tokens": 64}
    expected = generate(tiny_engine(**settings).engine, *requests)
    assert not any(POISON in answer for answer in expected), "nobody else may have the poisonous token"
    engine = poison(tiny_engine(**settings).engine, late=late)
    added = [engine.add_request(request) for request in requests[:3]]
    engine.step()
    guilty = engine.add_request(generation([5, POISON, 7], max_tokens=9))
    added += [engine.add_request(request) for request in requests[3:]]
    run_to_end(engine)
    engine.check_invariants()
    assert [request.token_ids[request.num_prompt_tokens :] for request in added] == expected
    assert (guilty.finish_reason, guilty.is_step_error) == (FinishReason.ERROR, True)
    assert guilty.num_output_tokens == 0
    assert engine.executor.num_failed == 2, "with the others, and alone"
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks
    assert engine.stats().requests_finished[FinishReason.ERROR] == 1


def test_a_request_that_fails_in_the_middle_of_its_answer_keeps_what_it_said():
    engine = poison(scripted_engine())
    guilty = engine.add_request(generation([95], max_tokens=20))
    other = engine.add_request(generation([40], max_tokens=20))
    outputs = []
    while engine.has_work:
        outputs += [output for output in engine.step() if output.request is guilty]
    assert [output.token_ids for output in outputs] == [(96,), (97,), (98,), (99,), ()]
    assert guilty.finish_reason is FinishReason.ERROR
    assert other.token_ids == list(range(40, 61))
    engine.check_invariants()


def test_waiting_requests_are_not_touched_and_nobody_starves():
    engine = poison(scripted_engine(max_num_seqs=2, num_blocks=24))
    added = [engine.add_request(generation([i], max_tokens=20)) for i in (10, 95, 12, 13, 14)]
    run_to_end(engine)
    engine.check_invariants()
    assert [request.finish_reason for request in added] == [
        FinishReason.ERROR if request.prompt_token_ids == (95,) else FinishReason.LENGTH for request in added
    ]


def test_suspects_that_fill_the_memory_make_room_for_each_other():
    engine = poison(scripted_engine(num_blocks=12, block_size=4, max_model_len=48))
    added = [engine.add_request(generation([i] * 9, max_tokens=6)) for i in (10, 20, 30)]
    engine.step()
    guilty = engine.add_request(generation([POISON], max_tokens=2))
    run_to_end(engine)
    engine.check_invariants()
    assert guilty.finish_reason is FinishReason.ERROR
    assert [request.num_output_tokens for request in added] == [6, 6, 6]


@pytest.mark.parametrize("params", [{"prompt_logprobs": 1}, {"pooling": Pooling.MEAN}])
def test_prompts_that_are_only_read_are_tried_alone_too(params):
    settings = {"kernels": "torch", "max_num_batched_tokens": 16}
    request = generation(list(range(60)), max_tokens=0, **params)
    engine = poison(tiny_engine(**settings).engine)
    read = engine.add_request(request)
    guilty = engine.add_request(generation([POISON], max_tokens=4))
    other = engine.add_request(generation([3, 4], max_tokens=4))
    run_to_end(engine)
    engine.check_invariants()
    assert [r.finish_reason for r in (read, guilty, other)] == [
        FinishReason.LENGTH,
        FinishReason.ERROR,
        FinishReason.LENGTH,
    ]
    alone = tiny_engine(**settings).engine
    expected = alone.add_request(request)
    run_to_end(alone)
    assert read.prompt_logprobs == expected.prompt_logprobs
    assert read.pooled_sum == expected.pooled_sum


def test_a_suspect_may_be_aborted():
    engine = poison(scripted_engine())
    guilty = engine.add_request(generation([POISON], max_tokens=4))
    others = [engine.add_request(generation([i], max_tokens=4)) for i in (1, 2, 3)]
    engine.step()  # fails: all are suspects now
    engine.abort(others[0])
    engine.abort(guilty)
    run_to_end(engine)
    engine.check_invariants()
    assert [request.num_output_tokens for request in others] == [0, 4, 4]


def test_a_fault_of_many_together_ends_nobody_and_many_faults_end_the_engine():
    engine = scripted_engine()
    launch, failures = engine.executor.launch, []

    def fails_with_two(batch):
        if batch.num_requests > 1 and len(failures) < limit:
            failures.append(1)
            raise MemoryError("scripted")
        return launch(batch)

    engine.executor.launch = fails_with_two
    limit = 2
    answers = generate(engine, generation([1], max_tokens=6), generation([50], max_tokens=6))
    assert answers == [list(range(2, 8)), list(range(51, 57))]
    limit = 99
    engine.add_request(generation([1], max_tokens=6))
    engine.add_request(generation([50], max_tokens=6))
    with pytest.raises(MemoryError):
        run_to_end(engine)


@DEPTHS
def test_random_faults_leave_every_answer_as_it_is(steps_ahead):
    """Steps fail at random, though no request is to blame: everybody is tried alone and goes on."""
    rng = random.Random(steps_ahead)
    requests = mixed_requests()
    settings = {"kernels": "torch", "steps_ahead": steps_ahead}
    expected = generate(tiny_engine(**settings).engine, *requests)
    engine = tiny_engine(**settings, max_num_batched_tokens=64).engine
    launch, failed = engine.executor.launch, []

    def sometimes(batch):
        if len(batch.chunks) > 1 and rng.random() < 0.5 and len(failed) < 2:
            failed.append(1)
            return _Late()
        return launch(batch)

    engine.executor.launch = sometimes
    assert generate(engine, *requests) == expected
    assert len(failed) == 2


class _Late(FinishedStep):
    def __new__(cls):
        return super().__new__(cls, None)

    def result(self):
        raise OSError("scripted")


def test_a_schedule_that_raises_loses_no_request():
    """It had taken some out of the queue that were not running yet."""
    engine = scripted_engine()
    start, num_calls = engine.kv_cache_manager.start, 0

    def fails_once(request, cached):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise RuntimeError("scripted")
        return start(request, cached)

    engine.kv_cache_manager.start = fails_once
    answers = generate(engine, *(generation([i], max_tokens=4) for i in (10, 20, 30, 40)))
    assert answers == [list(range(i + 1, i + 5)) for i in (10, 20, 30, 40)]
