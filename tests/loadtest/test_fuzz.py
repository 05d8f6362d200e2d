"""The fuzzer finds nothing in a server, and what it should find in a bad one."""

import asyncio
import os

from loadtest.fuzz import Fuzzer
from tests.fakes import FakeEngine, say
from tests.server.harness import serving


def test_a_good_server_is_not_blamed():
    with serving(FakeEngine(lambda _: say("hello"), max_model_len=512)) as server:
        fuzzer = Fuzzer(server.url, os.getpid(), seed=3)
        asyncio.run(fuzzer.run(300, idle_seconds=0.0))
    assert fuzzer.found == []
    assert fuzzer.statuses[200] > 10
    assert fuzzer.statuses[400] > 100


def test_what_it_looks_for():
    fuzzer = Fuzzer("http://127.0.0.1:1", os.getpid(), seed=3)
    fuzzer._judge(500, 10, 0.1, "a 500")
    fuzzer._judge(400, 5000, 0.1, "a long error")
    fuzzer._judge(200, 10**6, 6.0, "a slow answer")
    fuzzer._judge(504, 100, 0.1, '{"deadline_ms": 1}')
    fuzzer._judge(503, 100, 0.1, '{"max_queue_ms": 1}')
    fuzzer._judge(503, 100, 0.1, "a 503")
    fuzzer._judge(200, 10**6, 0.1, "a long answer")
    assert [line.split(":")[0] for line in fuzzer.found] == ["500", "5000 bytes", "6.0 s", "503"]
