"""The short form of loadtest.chaos: each trouble once, and right answers and nothing left behind after it."""

import asyncio
import socket

from loadtest.chaos import TROUBLES, run
from loadtest.chaos_server import ChaosServer


def test_whatever_happens_answers_are_right_and_nothing_is_left_behind(default_checkpoint, tmp_path):
    assert default_checkpoint
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = ("--max-queue", "64", "--kv-cache-memory", "256MiB", "--max-model-len", "2048")
    server = ChaosServer(port, tmp_path / "cache", tmp_path / "log", *flags)
    try:
        assert asyncio.run(run(server, TROUBLES, seconds=0.0, seed=7)) == len(TROUBLES)
    finally:
        server.close()
    outcomes = server.tally.outcomes
    print(dict(outcomes))
    assert outcomes["right"] > 100
    assert outcomes["ended with an error"] > 0, "streams of an engine that was killed"
    assert outcomes["refused with 429"] > 0, "in a flood"
    assert "Traceback" not in (tmp_path / "log").read_text()
