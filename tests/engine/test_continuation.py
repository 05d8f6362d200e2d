"""Continuations: what the scheduler would have decided request by request, step by step the same."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.core.continuation import expand
from engine.core.engine import Engine
from engine.core.executor import FinishedStep
from engine.core.step_output import StepTokens
from engine.interface.batch import PENDING_TOKEN, Batch, Continuation, ScheduledChunk
from engine.interface.outputs import FinishReason
from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import SpeculationMode
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from tests.drafters import asking, scripted_speculator
from tests.engine.test_same_tokens import mixed_requests
from tests.tiny import (
    GPT2,
    LLAMA,
    ScriptedExecutor,
    generate,
    generation,
    run_to_end,
    scripted_engine,
    tiny_engine,
)

DEPTHS = pytest.mark.parametrize("steps_ahead", [0, 1, 2])
BLOCK_SIZE = 4


def next_token(tokens):
    return (31 * sum(tokens[-3:]) + 7 * len(tokens)) % 100


def guess(request, limit):
    """Every second token is right."""
    tokens, drafts = list(request.token_ids), []
    for i in range(limit):
        drafts.append((next_token(tokens) + i % 2) % 100)
        tokens.append(drafts[-1])
    return drafts


class Recorder(ScriptedExecutor):
    """Writes down every step in full, with the tokens that were pending; some tokens have broken values."""

    def __init__(self, *, steps_ahead, continues, broken=frozenset()):
        super().__init__(next_token, block_size=BLOCK_SIZE, steps_ahead=steps_ahead, continues=continues)
        self.log = []
        self._broken = broken  # (request_id, position)

    def launch(self, batch):
        output = super().launch(batch).output
        chunks = [self._with_tokens(chunk) for chunk in self.launched.chunks]
        self.log.append((tuple(chunks), self.launched.block_copies))
        places = [
            (chunk.request_id, chunk.first_position + i)
            for chunk in chunks
            for i in range(len(chunk.token_ids))
        ]
        faults = frozenset(token for token, place in enumerate(places) if place in self._broken)
        return FinishedStep(output._replace(faults=faults))

    def _with_tokens(self, chunk):
        if chunk.token_ids[-1] != PENDING_TOKEN:
            return chunk
        number, offset = divmod(chunk.first_position + chunk.num_tokens - 1, BLOCK_SIZE)
        return chunk._replace(
            token_ids=(*chunk.token_ids[:-1], self._storage[chunk.block_ids[number], offset])
        )


def recorded_engine(
    *,
    continues,
    steps_ahead=0,
    num_blocks=200,
    max_num_seqs=8,
    budget=64,
    caching=True,
    broken=frozenset(),
    speculates=False,
):
    manager = KVCacheManager(BlockPool(num_blocks), block_size=BLOCK_SIZE, enable_prefix_caching=caching)
    return Engine(
        Recorder(steps_ahead=steps_ahead, continues=continues, broken=broken),
        manager,
        max_model_len=48,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        vocab_size=100,
        eos_token_ids=frozenset({2}),
        speculator=scripted_speculator(guess, default_mode=SpeculationMode.OFF) if speculates else None,
        secret=b"same",
    )


def state_of(engine):
    """All that a next step could depend on."""
    engine.check_invariants()
    pool, scheduler = engine.kv_cache_manager.pool, engine.scheduler
    requests = [
        (
            request.request_id,
            request.status,
            request.finish_reason,
            tuple(request.token_ids),
            request.num_computed_tokens,
            request.num_committed_tokens,
            request.num_in_flight,
            request.num_steps_in_flight,
            request.num_cached_full_blocks,
            request.num_cached_tokens,
            request.block_ids,
            tuple(request.block_hashes),
        )
        for request in scheduler.requests
    ]
    stats = engine.stats()._replace(execute_seconds=0.0)
    blocks = [(b.block_id, b.ref_count, b.block_hash, b.parent_hash, b.token_ids) for b in pool.blocks]
    return {
        "requests": requests,
        "running": [request.request_id for request in scheduler.running],
        "waiting": sorted(request.request_id for request in scheduler.waiting),
        "served": list(scheduler.waiting._served.items()),
        "in flight": dict(engine.kv_cache_manager._in_flight),
        "free": list(pool._free),
        "blocks": blocks,
        "stats": stats,
        "latest stats": engine.latest_stats._replace(execute_seconds=0.0),
    }


def told(outputs):
    return [
        (o.request.request_id, o.token_ids, o.is_first, o.logprobs, o.num_draft_tokens, o.num_accepted_tokens)
        for o in outputs
    ]


def plain(rng, **params):
    prompt = list(range(rng.randrange(1, 14))) + [rng.randrange(100) for _ in range(rng.randrange(1, 6))]
    settings = {"max_tokens": rng.choice([1, 2, 5, 12, 25]), "seed": rng.randrange(1000)}
    return generation(prompt, **(settings | params))


def special(rng):
    kind = rng.randrange(5)
    if kind == 0:
        return plain(rng, frequency_penalty=0.5)
    if kind == 1:
        return plain(rng, min_tokens=1)
    if kind == 2:
        return plain(rng, logprobs=0)
    if kind == 3:
        return plain(rng, stop_token_ids=frozenset(range(0, 100, 9)))
    return plain(rng, ignore_eos=True)


def random_trace(rng, num_steps, *, arrivals, aborts=0.02, specials=0.0, tenants=1, speculates=False):
    """What happens before each step: requests that come, ids of those that go."""
    trace, num_added = [], 0
    for step in range(num_steps):
        rate = arrivals if step // 40 % 2 == 0 else arrivals / 12  # so that decoding is steady at times
        added = []
        while rng.random() < rate:
            one = special(rng) if rng.random() < specials else plain(rng)
            tenant = rng.randrange(tenants)
            one = replace(
                one, tenant=b"%d" % tenant, weight=(1.0, 3.0, 0.7)[tenant], priority=rng.randrange(2)
            )
            if rng.random() < 0.25:
                one = replace(one, max_queue_seconds=float(rng.randrange(1, 9)))
            if speculates and rng.random() < 0.2:
                one = asking(one, "ngram", 3)
            added.append(one)
        aborted = [rng.randrange(max(1, num_added))] if rng.random() < aborts else []
        num_added += len(added)
        trace.append((added, aborted))
    return trace


@pytest.fixture
def clock(monkeypatch):
    """Time goes on by a little whenever somebody looks."""

    def monotonic():
        clock.now += 0.001
        return clock.now

    clock = SimpleNamespace(now=0.0, monotonic=monotonic)
    for module in ("engine", "scheduler", "request"):
        monkeypatch.setattr(f"engine.core.{module}.time", clock)
    return clock


def same_steps(clock, trace, **settings):
    """Run a trace over both engines side by side; return the one that continues."""
    fast, slow = (recorded_engine(continues=continues, **settings) for continues in (True, False))
    requests = {fast: [], slow: []}
    for step in range(10_000):
        added, aborted = trace[step] if step < len(trace) else ([], [])
        brought = []
        for engine in (fast, slow):
            clock.now = float(step)
            requests[engine] += [engine.add_request(one) for one in added]
            for number in aborted:
                if number < len(requests[engine]):
                    engine.abort(requests[engine][number])
            brought.append(told(engine.step()))
        assert brought[0] == brought[1], step
        assert fast.executor.log == slow.executor.log, step
        # Looking brings the counters up to date: not every time, so that they also stand still for a while.
        if step % 7 == 0 or step % 31 < 4:
            assert state_of(fast) == state_of(slow), step
        fast.executor.log.clear()
        slow.executor.log.clear()
        if step >= len(trace) and not slow.has_work:
            break
    assert state_of(fast) == state_of(slow)
    assert not fast.has_work
    assert slow.executor.num_continuations == 0
    return fast, requests[fast]


@DEPTHS
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_blocks": 14},
        {"num_blocks": 14, "max_num_seqs": 3},
        {"budget": 5},
        {"caching": False},
    ],
    ids=["room", "full pool", "few places", "small budget", "no cache"],
)
def test_every_step_is_as_if_decided_request_by_request(clock, settings, steps_ahead):
    rng = random.Random(steps_ahead)
    trace = random_trace(rng, 500, arrivals=0.35)
    fast, _ = same_steps(clock, trace, steps_ahead=steps_ahead, **settings)
    assert fast.executor.num_continuations > 60
    if settings.get("num_blocks") == 14 and "max_num_seqs" not in settings:
        assert fast.stats().num_preemptions > 5


@DEPTHS
def test_beside_requests_that_cannot_be_continued(clock, steps_ahead):
    trace = random_trace(random.Random(3 + steps_ahead), 500, arrivals=0.3, specials=0.15, speculates=True)
    fast, _ = same_steps(clock, trace, steps_ahead=steps_ahead, speculates=True)
    assert fast.executor.num_continuations > 60
    assert fast.stats().num_drafts > 10


@DEPTHS
@pytest.mark.parametrize("settings", [{"max_num_seqs": 4}, {"num_blocks": 20}], ids=["places", "blocks"])
def test_tenants_take_the_same_turns(clock, settings, steps_ahead):
    trace = random_trace(random.Random(steps_ahead), 500, arrivals=0.4, tenants=3)
    fast, _ = same_steps(clock, trace, steps_ahead=steps_ahead, **settings)
    assert fast.executor.num_continuations > 60
    assert fast.stats().requests_finished[FinishReason.TIMEOUT] > 5


@DEPTHS
def test_a_fault_ends_its_own_request(clock, steps_ahead):
    rng = random.Random(steps_ahead)
    broken = frozenset((rng.randrange(150), rng.randrange(4, 40)) for _ in range(150))
    trace = random_trace(rng, 500, arrivals=0.25, aborts=0.0)
    fast, requests = same_steps(clock, trace, steps_ahead=steps_ahead, broken=broken)
    assert fast.executor.num_continuations > 60
    assert sum(r.finish_reason is FinishReason.ERROR and r.num_output_tokens > 3 for r in requests) > 5


@DEPTHS
def test_steps_that_only_go_on_are_continuations(steps_ahead):
    engine = scripted_engine(steps_ahead=steps_ahead)
    requests = [engine.add_request(generation([i, 40 + i], max_tokens=20)) for i in range(3)]
    engine.step()
    brought = []
    while engine.has_work:
        brought.append(engine.step())
    assert engine.executor.num_continuations == 19, "all but the prompts' step"
    together = [isinstance(outputs, StepTokens) for outputs in brought]
    assert sum(together) == 18 - max(0, steps_ahead - 1), "all but the last, or those then under way"
    for i, request in enumerate(requests):
        assert request.token_ids[2:] == list(range(41 + i, 61 + i))


def test_a_continuation_names_the_blocks_that_begin_with_it_and_the_rows_that_ended():
    engine = scripted_engine()
    launched = []
    launch = engine.executor.launch
    engine.executor.launch = lambda batch: launched.append(batch) or launch(batch)
    engine.add_request(generation([1, 2], max_tokens=9))
    engine.add_request(generation([3, 4, 5], max_tokens=8))
    run_to_end(engine)
    continuations = [one for one in launched if isinstance(one, Continuation)]
    blocks = [[row for row, _ in one.new_blocks] for one in continuations]
    assert blocks == [[0], [1], [], [], [0], [1], []]
    assert [one.ended for one in continuations] == [()] * 6 + [(0,)]
    assert [one.num_rows for one in continuations] == [2] * 6 + [1]


def test_expanding_moves_every_row_on():
    row = SampledRow(SamplingParams(), 7, 1, 6)
    chunks = [ScheduledChunk(i, 5, (i,), (8, 9 + i), (row,)) for i in range(2)]
    once = expand(Batch(tuple(chunks)), Continuation(2))
    assert once.chunks[0] == ScheduledChunk(0, 6, (PENDING_TOKEN,), (8, 9), (row._replace(position=7),))
    twice = expand(once, Continuation(2, ((1, 77),)))
    assert [chunk.block_ids for chunk in twice.chunks] == [(8, 9), (8, 10, 77)]
    assert [chunk.first_position for chunk in twice.chunks] == [7, 7]
    [left] = expand(twice, Continuation(1, ((0, 78),), (0,))).chunks
    assert (left.request_id, left.first_position, left.block_ids) == (1, 8, (8, 10, 77, 78))
    prompt = Batch((ScheduledChunk(0, 2, (5, 6, 7, 8), (8, 9), (row,)),))
    assert expand(prompt, Continuation(1)).chunks[0].first_position == 6


def test_who_ends_leaves_the_others_going_on():
    engine = scripted_engine(steps_ahead=1)
    requests = [engine.add_request(generation([i, 40 + i], max_tokens=6 + 3 * i)) for i in range(4)]
    engine.step()
    engine.step()
    engine.abort(requests[2])
    run_to_end(engine)
    assert len(engine.executor.batches) - engine.executor.num_continuations == 1, "the prompts' step"
    path = engine.scheduler._steady_path
    assert (list(path._launched), path._steady, list(path._under_way)) == ([], None, []), "nothing is kept"
    for i in (0, 1, 3):
        assert requests[i].token_ids[2:] == [(41 + i + k) % 100 for k in range(6 + 3 * i)]


def continuing(loaded):
    loaded.engine.executor.continues = True
    return loaded.engine


@DEPTHS
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_model_gives_the_same_tokens(config, steps_ahead):
    settings = {"kernels": "torch", "steps_ahead": steps_ahead}
    requests = [
        *mixed_requests(),
        *[generation([i, 9], max_tokens=24, temperature=0.8, seed=i) for i in range(3)],
    ]
    expected = generate(tiny_engine(config, **settings).engine, *requests)
    engine = continuing(tiny_engine(config, **settings))
    num_continuations = 0
    launch = engine.executor.launch

    def count(batch):
        nonlocal num_continuations
        num_continuations += isinstance(batch, Continuation)
        return launch(batch)

    engine.executor.launch = count
    assert generate(engine, *requests) == expected, "cold"
    assert generate(engine, *requests) == expected, "warm"
    assert num_continuations > 5


@DEPTHS
@pytest.mark.parametrize("late", [False, True])
def test_continuations_that_fail_are_forgotten(clock, steps_ahead, late):
    requests = [generation([i, 50 - i, 7], max_tokens=60, seed=i) for i in range(5)]
    expected = generate(scripted_engine(next_token), *requests)
    engine = scripted_engine(next_token, steps_ahead=steps_ahead)
    launch, failed = engine.executor.launch, []

    class Failing:
        def result(self):
            clock.now += 31.0  # else so many failures would be nobody's fault
            raise MemoryError("scripted")

    def fails_at_times(batch):
        step = launch(batch)
        if isinstance(batch, Continuation) and engine.executor.num_continuations % 17 == 16:
            failed.append(batch)
            return Failing() if late else Failing().result()
        return step

    engine.executor.launch = fails_at_times
    assert generate(engine, *requests) == expected
    assert len(failed) > 2
