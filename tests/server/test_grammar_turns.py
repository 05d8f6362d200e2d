"""Who waits for whose grammar: turns, shared work, and work that ends when its client leaves."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from engine.interface.cancellation import Cancellation
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec
from server.api import grammars
from server.api.errors import ApiError
from server.fair_turns import FairTurns
from server.token_bucket import TokenBucket
from tests.fakes import Clock, FakeEngine
from tests.server.harness import RunningServer, serving

ALICE, BOB = "key-of-alice", "key-of-bob"


class SlowCompiler:
    """Compiles what is called hostile until it is released, or cancelled."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.started = threading.Semaphore(0)
        self.compiled: list[str] = []
        self.cancelled: list[str] = []

    def __call__(self, spec: GrammarSpec, cancellation: Cancellation) -> None:
        if "hostile" in spec.source:
            self.started.release()
            with cancellation.calling(self.release.set):
                self.release.wait(20)
        (self.cancelled if cancellation.is_cancelled else self.compiled).append(spec.source)


def post(server: RunningServer, structure: object = None, **options: Any) -> httpx.Response:
    body = {"prompt": "x", "max_tokens": 3, "structured_outputs": structure}
    return server.client.post("/v1/completions", json=body, **options)


def post_regex(server: RunningServer, source: str, **options: Any) -> httpx.Response:
    return post(server, {"regex": source}, **options)


@contextmanager
def asking(server: RunningServer, source: str) -> Iterator[None]:
    """Ask for a grammar and leave without waiting for the answer."""
    url = urlsplit(server.url)
    content = json.dumps({"prompt": "x", "structured_outputs": {"regex": source}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        yield


def num_waiting(server: RunningServer) -> int:
    """Return how many requests wait for a grammar."""
    return sum(job.num_waiting for job in list(server.state.grammars._jobs.values()))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_hostile_grammars_wait_for_each_other_and_nobody_else_for_them() -> None:
    compile_grammar = SlowCompiler()
    engine = FakeEngine(compile_grammar=compile_grammar)
    with serving(engine, keys=(ALICE, BOB)) as server, ThreadPoolExecutor(8) as pool:
        alice, bob = ({"x-api-key": key} for key in (ALICE, BOB))
        assert post_regex(server, "known", headers=alice).status_code == 200
        hostile = [pool.submit(post_regex, server, f"hostile{i}", headers=alice) for i in range(5)]
        try:
            assert all(compile_grammar.started.acquire(timeout=20) for _ in range(2))
            assert post(server, headers=alice).status_code == 200
            assert post_regex(server, "known", headers=alice).status_code == 200  # the engine still has it
            for harmless in ({"choice": ["a", "b"]}, {"json_object": True}):
                assert post(server, harmless, headers=alice).status_code == 200
            assert post_regex(server, "new", headers=bob).status_code == 200, "a turn is left for others"
            mine = pool.submit(post_regex, server, "mine", headers=alice)
            assert not compile_grammar.started.acquire(blocking=False), "two at a time"
            assert not mine.done()
        finally:
            compile_grammar.release.set()
        assert [future.result().status_code for future in (*hostile, mine)] == [200] * 6


def test_who_leaves_ends_what_is_compiled_for_nobody_else() -> None:
    compile_grammar = SlowCompiler()
    with serving(FakeEngine(compile_grammar=compile_grammar)) as server:
        for _ in range(3):
            with asking(server, "hostile"):
                assert compile_grammar.started.acquire(timeout=20)
            wait_for(lambda: bool(compile_grammar.cancelled))
            compile_grammar.release.clear()
            compile_grammar.cancelled.clear()
        assert post_regex(server, "new").status_code == 200
        assert not compile_grammar.compiled or compile_grammar.compiled == ["new"]


def test_a_refusal_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(spec: GrammarSpec, _: Cancellation) -> None:
        asked.append(spec.source)
        raise RequestError("it takes more than 5 seconds to compile")

    with serving(FakeEngine(compile_grammar=refuse)) as server:
        for _ in range(3):
            assert post_regex(server, "slow").status_code == 400
        assert asked == ["slow"]
    monkeypatch.setattr(grammars, "_REFUSAL_SECONDS", -1.0)
    with serving(FakeEngine(compile_grammar=refuse)) as server:
        for _ in range(2):
            assert post_regex(server, "slow").status_code == 400
    assert asked == ["slow"] * 3


def test_one_grammar_that_many_want_is_compiled_once() -> None:
    compile_grammar = SlowCompiler()
    with serving(FakeEngine(compile_grammar=compile_grammar)) as server, ThreadPoolExecutor(64) as pool:
        answers = [pool.submit(post_regex, server, "hostile") for _ in range(64)]
        assert compile_grammar.started.acquire(timeout=20)
        wait_for(lambda: num_waiting(server) == 64)
        with asking(server, "hostile"):
            wait_for(lambda: num_waiting(server) == 65)
        wait_for(lambda: num_waiting(server) == 64)
        assert not compile_grammar.cancelled, "others still want it"
        compile_grammar.release.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert compile_grammar.compiled[0] == "hostile"
    assert not compile_grammar.started.acquire(blocking=False)


def test_a_bucket_fills_up_to_its_capacity_and_may_be_in_debt() -> None:
    clock = Clock()
    bucket = TokenBucket(capacity=10, per_second=2, clock=clock)
    bucket.take(14)
    assert bucket.level == -4
    assert bucket.seconds_until(0) == 2
    assert bucket.seconds_until(1) == 2.5
    assert bucket.seconds_until(1000) == 7, "a full bucket is the most that ever comes"
    clock.now += 1
    assert bucket.level == -2
    bucket.take(-1)
    assert bucket.level == -1
    clock.now += 1000
    assert bucket.level == 10
    bucket.take(-5)
    assert bucket.level == 10


def test_the_tenant_that_has_worked_least_goes_first() -> None:
    async def scenario() -> list[str]:
        clock, order = Clock(), list[str]()
        turns = FairTurns(1, clock=clock)

        async def work(tenant: str, seconds: float) -> None:
            async with turns.turn(tenant.encode()):
                order.append(tenant)
                clock.now += seconds
                await asyncio.sleep(0)

        await asyncio.gather(work("a", 5), *(work(tenant, 2) for tenant in "aaabbc"))
        return order

    assert asyncio.run(scenario()) == ["a", "b", "c", "b", "a", "a", "a"]


def test_who_has_worked_for_more_than_its_share_is_refused_until_it_is_paid() -> None:
    async def scenario() -> None:
        clock = Clock()
        turns = FairTurns(2, clock=clock)
        async with turns.turn(b"a"):
            clock.now += 40.25
        with pytest.raises(ApiError, match="too long") as refusal:
            async with turns.turn(b"a"):
                raise AssertionError
        assert refusal.value.status == 429
        assert refusal.value.headers["retry-after"] == "40"
        async with turns.turn(b"b"):
            pass
        clock.now += 40
        async with turns.turn(b"a"):
            pass

    asyncio.run(scenario())


def test_grammars_that_are_not_slow_cost_nothing() -> None:
    async def scenario() -> None:
        clock = Clock()
        turns = FairTurns(2, clock=clock)
        for _ in range(1000):
            async with turns.turn(b"a"):
                clock.now += 0.2

    asyncio.run(scenario())


def test_a_turn_is_given_back_by_who_leaves_while_waiting() -> None:
    async def scenario() -> None:
        turns = FairTurns(1)
        entered = list[int]()

        async def work(number: int) -> None:
            async with turns.turn(b"a"):
                entered.append(number)

        async with turns.turn(b"b"):
            tasks = [asyncio.ensure_future(work(number)) for number in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
        tasks[1].cancel()  # its turn has just come
        await asyncio.gather(*tasks, return_exceptions=True)
        assert entered == [2]
        async with turns.turn(b"c"):
            pass

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_the_queue_of_one_tenant_is_bounded() -> None:
    async def scenario() -> None:
        turns = FairTurns(1)

        async def work(tenant: bytes) -> None:
            async with turns.turn(tenant):
                pass

        async with turns.turn(b"a"):
            tasks = [asyncio.ensure_future(work(b"a")) for _ in range(33)] + [
                asyncio.ensure_future(work(b"b"))
            ]
            await asyncio.sleep(0)
            assert [task.done() for task in tasks] == [False] * 32 + [True, False]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[32], ApiError)
        assert results[32].status == 429

    asyncio.run(asyncio.wait_for(scenario(), 20))
