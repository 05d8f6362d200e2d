"""The bridge: delivery, aborts, refusal, drain and death, with a scripted model that can be held."""

import asyncio
import gc
import threading

import pytest

from engine.bridge import unread_budget
from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_thread import EngineThread
from engine.bridge.unread_budget import UnreadBudget
from engine.interface.cache_explanation import CacheEnd
from engine.interface.errors import (
    EngineDeadError,
    EngineUnavailableError,
    QueueFullError,
    RequestError,
    SlowReaderError,
)
from engine.interface.outputs import FinishReason
from tests.tiny import generation, scripted_engine


class Gate:
    """Lets the engine thread run a step only when told to; open by default."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Event()  # a step is at the gate
        self.error = None

    def __call__(self, tokens):
        self.waiting.set()
        assert self.open.wait(10)
        self.waiting.clear()
        if self.error:
            raise self.error
        return (tokens[-1] + 1) % 100

    async def reached(self):
        assert await asyncio.to_thread(self.waiting.wait, 10)


class Bridge:
    """An AsyncEngine over a scripted model, closed at the end."""

    def __init__(self, *, max_queue=16, stream_interval=0.0, **settings):
        self.gate = Gate()
        self.engine = scripted_engine(self.gate, **settings)
        self.bridge = AsyncEngine(
            EngineThread(self.engine, stream_interval=stream_interval), max_queue=max_queue
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.gate.open.set()
        await asyncio.to_thread(self.bridge.close)
        assert self.engine.kv_cache_manager.pool.num_free == self.engine.kv_cache_manager.pool.num_blocks or (
            self.bridge.is_dead
        )

    async def collect(self, *requests):
        answers = {}
        reasons = {}
        async for output in self.bridge.generate(requests):
            answers.setdefault(output.index, []).extend(output.new_token_ids)
            if output.finish_reason:
                assert output.index not in reasons, "a request ends once"
                reasons[output.index] = output.finish_reason
        return answers, reasons


async def count(stream):
    return sum([len(output.new_token_ids) async for output in stream])


def run(scenario, **settings):
    async def main():
        async with Bridge(**settings) as bridge:
            await scenario(bridge)

    asyncio.run(main())


def test_lookups_are_answered_between_steps_one_at_a_time_and_when_nothing_runs():
    async def scenario(b):
        ask = generation([1, 2, 3, 4, 5], max_tokens=3)
        b.gate.open.clear()
        stream = b.bridge.generate([ask])
        await b.gate.reached()
        lookups = [asyncio.ensure_future(b.bridge.look_up_cache(ask)) for _ in range(2)]
        await asyncio.sleep(0)
        lookups[0].cancel()  # nobody waits for it: it still counts until the engine has answered
        b.gate.open.set()
        assert (await lookups[1]).end is CacheEnd.END_OF_PROMPT
        assert await count(stream) == 3
        steps = b.engine.num_steps
        found = await asyncio.gather(*(b.bridge.look_up_cache(ask) for _ in range(64)))
        assert {(one.end, one.num_cached_tokens) for one in found} == {(CacheEnd.END_OF_PROMPT, 4)}
        assert b.engine.num_steps == steps
        assert b.bridge._lookups == {}

    run(scenario)


def test_a_dead_or_closed_engine_answers_no_lookup():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1, 2, 3])])
        await b.gate.reached()
        lookup = asyncio.ensure_future(b.bridge.look_up_cache(generation([1])))
        await asyncio.sleep(0)
        b.gate.error = SystemExit("scripted")
        b.gate.open.set()
        with pytest.raises(EngineDeadError):
            await lookup
        with pytest.raises(EngineDeadError):
            await count(stream)
        with pytest.raises(EngineDeadError):
            await b.bridge.look_up_cache(generation([1]))

    run(scenario)


def test_every_request_ends_exactly_once_with_a_reason():
    async def scenario(b):
        answers, reasons = await b.collect(
            generation([1], max_tokens=3), generation([50], max_tokens=9, stop_token_ids=frozenset({52}))
        )
        assert answers == {0: [2, 3, 4], 1: [51, 52]}
        assert reasons == {0: FinishReason.LENGTH, 1: FinishReason.STOP}
        assert b.bridge.stats().num_requests_running == b.bridge.stats().num_requests_waiting == 0

    run(scenario)


def test_many_streams_at_once_each_get_their_own():
    async def scenario(b):
        results = await asyncio.gather(*(b.collect(generation([i], max_tokens=20)) for i in range(40)))
        for i, (answers, _) in enumerate(results):
            assert answers[0] == [(i + 1 + j) % 100 for j in range(20)]

    run(scenario, max_queue=64)


def test_a_fast_stream_comes_in_few_deliveries_its_first_and_last_token_at_once():
    async def scenario(b):
        deliveries = []
        stream = b.bridge.generate([generation([1], max_tokens=40)])
        while stream.num_open:
            first = await anext(stream)
            deliveries.append([token for o in (first, *stream.get_ready()) for token in o.new_token_ids])
        assert [token for part in deliveries for token in part] == list(range(2, 42))
        assert len(deliveries) < 10
        assert deliveries[0][0] == 2

    run(scenario, stream_interval=30.0)


def test_what_a_long_step_leaves_waiting_is_delivered_by_the_loop_itself():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=5)])
        tokens = []
        for _ in range(3):  # the step after each of these stands still until its output is here
            await b.gate.reached()
            b.gate.open.set()
            b.gate.open.clear()
            output = await asyncio.wait_for(anext(stream), 10)
            tokens += output.new_token_ids
        assert tokens == [2, 3, 4]
        b.gate.open.set()
        assert await count(stream) == 2

    run(scenario, stream_interval=0.05)


def test_all_or_none_a_bad_request_starts_nothing():
    async def scenario(b):
        with pytest.raises(RequestError, match="token id 100"):
            b.bridge.generate([generation([1]), generation([100])])
        assert b.bridge.stats().num_requests_waiting == 0
        assert b.engine.stats().num_steps == 0

    run(scenario)


def test_a_full_queue_refuses_at_once():
    async def scenario(b):
        b.gate.open.clear()
        streams = [b.bridge.generate([generation([i], max_tokens=2)]) for i in range(4)]
        with pytest.raises(QueueFullError, match="limit of 4"):
            b.bridge.generate([generation([9])])
        streams[0].abort()
        b.bridge.generate([generation([9])]).abort()
        b.gate.open.set()
        assert [await count(stream) for stream in streams] == [0, 2, 2, 2]

    run(scenario, max_num_seqs=2, max_queue=2)


def test_the_queue_is_bounded_in_tokens_and_takes_any_prompt_alone():
    async def scenario():
        async with Bridge(max_model_len=128, num_blocks=200) as running:
            running.bridge._max_open_tokens = 50
            running.gate.open.clear()
            large = running.bridge.generate([generation(range(100), max_tokens=2)])
            with pytest.raises(QueueFullError, match=r"100 tokens are open, 3 more .* the limit of 50"):
                running.bridge.generate([generation(range(3))])
            running.gate.open.set()
            assert sum([len(output.new_token_ids) async for output in large]) == 2
            two = running.bridge.generate([generation(range(25), max_tokens=2)] * 2)
            with pytest.raises(QueueFullError, match="50 tokens are open"):
                running.bridge.generate([generation([1])])
            two.abort()
            assert len([output async for output in running.bridge.generate([generation([1])])]) > 0

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_an_abort_during_a_step_frees_the_request_before_the_next_one():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=100), generation([2], max_tokens=5)])
        await b.gate.reached()
        stream.abort(0)
        stream.abort(0)
        steps = b.engine.stats().num_steps
        b.gate.open.set()
        outputs = [output async for output in stream]
        assert {o.index for o in outputs if o.finish_reason} == {1}
        assert all(len(batch) == 1 for batch in b.engine.executor.batches[steps + 1 :])
        assert b.engine.stats().requests_finished[FinishReason.ABORT] == 1

    run(scenario)


def test_aborting_before_the_engine_saw_the_request_is_fine():
    async def scenario(b):
        b.gate.open.clear()
        blocker = b.bridge.generate([generation([1], max_tokens=2)])
        await b.gate.reached()
        early = b.bridge.generate([generation([2])])
        early.abort()
        b.gate.open.set()
        assert [o async for o in early] == []
        assert await count(blocker) == 2

    run(scenario)


def test_a_slow_consumer_holds_up_nobody():
    async def scenario(b):
        slow = b.bridge.generate([generation([1], max_tokens=50)])
        answers, _ = await b.collect(generation([2], max_tokens=60))
        assert len(answers[0]) == 60
        tokens = [token for output in slow.get_ready() for token in output.new_token_ids]
        assert tokens == list(range(2, 52)), "everything waits, nothing is lost"
        assert [o async for o in slow] == []

    run(scenario)


def test_a_stream_that_nobody_reads_is_ended_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(unread_budget, "_GRACE", 0.0)

    async def scenario():
        async with Bridge(max_model_len=100_000, max_num_seqs=4, num_blocks=30_000) as running:
            running.bridge._unread = UnreadBudget(max_each=2000 * 200)
            unread = running.bridge.generate([generation([1], max_tokens=90_000)])
            while unread.num_open:
                read = running.bridge.generate([generation([1], max_tokens=500)])
                assert sum([len(output.new_token_ids) async for output in read]) == 500
            with pytest.raises(SlowReaderError):
                await unread.__anext__()
            assert unread.num_unread_bytes == 0
            await running.bridge.look_up_cache(generation([1]))  # taken after the abort
            assert running.engine.latest_stats.requests_finished[FinishReason.ABORT] == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


class Unread:
    def __init__(self, budget, num_bytes, num_requests=1):
        self.num_requests, self.num_unread_bytes = num_requests, 0
        budget.watch(self)
        budget.count(self, num_bytes)


def test_readers_have_a_moment_and_the_longest_streams_end_first():
    budget = UnreadBudget(max_each=100, max_total=300)
    long, catching_up = Unread(budget, 101), Unread(budget, 150)
    wide = Unread(budget, 150, num_requests=2)
    assert budget.overflowing(10.0) == [], "the event loop may have been held up itself"
    budget.count(catching_up, -120)
    budget.count(wide, -10)
    assert budget.overflowing(12.0) == [long]
    budget.count(long, -101)
    others = [Unread(budget, size) for size in (60, 90, 70, 80)]
    assert budget.overflowing(13.0) == []
    assert budget.overflowing(15.0) == [wide, others[1]], "the longest first, and no more than needed"
    for stream in others:
        budget.count(stream, -stream.num_unread_bytes)
    assert budget.overflowing(19.0) == []


def test_what_is_thrown_away_unread_is_not_counted_for_ever():
    budget = UnreadBudget(max_each=100, max_total=100)
    Unread(budget, 90)
    kept = Unread(budget, 90)
    gc.collect()
    assert budget.overflowing(1.0) == budget.overflowing(3.0) == []
    budget.count(kept, 1)
    assert budget.overflowing(9.0) == []


def test_tokens_that_are_delivered_together_keep_the_numbers_of_their_steps():
    async def scenario(b):
        others = b.bridge.generate([generation([i], max_tokens=30) for i in (50, 60)])
        stream = b.bridge.generate([generation([1], max_tokens=90), generation([7], max_tokens=40)])
        outputs = [output async for output in stream]
        assert len(outputs) < 30
        for index, first, count in ((0, 2, 90), (1, 8, 40)):
            mine = [output for output in outputs if output.index == index]
            assert [token for o in mine for token in o.new_token_ids] == list(range(first, first + count))
            steps = [step for o in mine for step in o.steps]
            assert steps == list(range(steps[0], steps[0] + count))
            assert [o.is_first for o in mine] == [True] + [False] * (len(mine) - 1)
            assert mine[0].new_token_ids == (first,)
            assert mine[-1].finish_reason is FinishReason.LENGTH
        assert len([output async for output in others]) < 30

    run(scenario, stream_interval=0.005)


def test_steps_that_always_raise_reach_every_open_request_and_every_later_one():
    async def scenario(b):
        b.gate.error = ZeroDivisionError("scripted")
        for i in range(2):  # alone each of them fails, too
            outputs = [output async for output in b.bridge.generate([generation([i], max_tokens=5)])]
            assert [(o.finish_reason, o.is_step_error) for o in outputs] == [(FinishReason.ERROR, True)]
        b.gate.open.clear()
        streams = [b.bridge.generate([generation([i], max_tokens=5)]) for i in range(3)]
        await b.gate.reached()
        b.gate.open.set()
        for stream in streams:
            with pytest.raises(EngineDeadError, match="ZeroDivisionError: scripted"):
                await anext(stream)
        assert b.bridge.is_dead
        assert b.bridge.stats().num_requests_running == 0
        with pytest.raises(EngineDeadError):
            b.bridge.generate([generation([1])])

    run(scenario)


class Panic(BaseException):
    """As pyo3's, of which no `except Exception` hears."""


def test_a_panic_of_a_native_library_is_no_silence():
    async def scenario(b):
        b.gate.error = Panic("scripted")
        with pytest.raises(EngineDeadError, match="Panic: scripted"):
            await anext(b.bridge.generate([generation([1], max_tokens=5)]))
        assert b.bridge.is_dead

    run(scenario)


def test_closing_does_not_wait_for_ever_for_a_step_that_hangs():
    async def main():
        gate = Gate()
        gate.open.clear()
        bridge = AsyncEngine(EngineThread(scripted_engine(gate)), max_queue=4)
        stream = bridge.generate([generation([1], max_tokens=5)])
        await gate.reached()
        assert not await asyncio.to_thread(bridge.close, 0.1)
        with pytest.raises(EngineUnavailableError):
            await anext(stream)
        gate.open.set()
        assert await asyncio.to_thread(bridge.close, 10)

    asyncio.run(main())


def test_drain_lets_open_requests_finish_and_takes_no_new_ones():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=5)])
        draining = asyncio.ensure_future(b.bridge.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            b.bridge.generate([generation([1])])
        b.gate.open.set()
        assert await count(stream) == 5
        assert await draining

    run(scenario)


def test_drain_ends_what_takes_too_long_with_an_error():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=5)])
        assert not await b.bridge.drain(0.01)
        with pytest.raises(EngineUnavailableError, match="before the answer was complete"):
            await anext(stream)

    run(scenario)


def test_close_fails_what_is_open():
    async def main():
        b = Bridge()
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=5)])
        await b.gate.reached()
        threading.Timer(0.05, b.gate.open.set).start()
        b.bridge.close()  # waits for the step at the gate
        with pytest.raises(EngineUnavailableError):
            async for _ in stream:
                pass

    asyncio.run(main())


def test_requests_of_an_event_loop_that_is_gone_are_aborted():
    b = Bridge()
    b.gate.open.clear()

    async def leave():
        b.bridge.generate([generation([1], max_tokens=100)])
        await b.gate.reached()

    asyncio.run(leave())
    b.gate.open.set()

    async def stay():
        answers, _ = await b.collect(generation([2], max_tokens=3))
        assert answers == {0: [3, 4, 5]}
        assert b.engine.stats().num_requests_running == 0

    asyncio.run(stay())
    b.bridge.close()


def test_stats_answer_during_a_long_step():
    async def scenario(b):
        b.gate.open.clear()
        stream = b.bridge.generate([generation([1], max_tokens=1)])
        await b.gate.reached()
        stats = b.bridge.stats()
        assert stats.num_requests_running == 1
        assert stats.seconds_since_step > 0
        b.gate.open.set()
        assert await count(stream) == 1

    run(scenario)
