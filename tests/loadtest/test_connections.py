"""The load tests of connections and fairness, against a model that is a script."""

import argparse
import asyncio
from urllib.parse import urlsplit

from loadtest import connections, fairness
from tests.fakes import FakeEngine, say
from tests.server.harness import serving


def test_everybody_is_answered_or_refused():
    engine = FakeEngine(lambda _: say("hello"))
    with serving(engine, max_open=10) as server:
        options = argparse.Namespace(connections=60, idle=15, slow=5, spread=0.1)
        figures = asyncio.run(connections._run(urlsplit(server.url).port, options))
    assert figures["answered"] + figures["refused"] == 45
    assert figures["answered"] > 0
    assert figures["incomplete"] == figures["other"] == 0
    assert figures["probes"] > 0


def test_a_chat_is_measured_under_another_key_than_the_jobs(capsys):
    engine = FakeEngine(lambda _: say("hello"))
    options = argparse.Namespace(
        jobs=0, job_tokens=5, job_temperature=0.0, chats=3, prompt_words=3, settle=0.0
    )
    with serving(engine, keys=fairness._KEYS.values()) as server:
        alone, beside = asyncio.run(fairness._measure(server.url, options))
        asyncio.run(fairness._job(server.url, options, 1))
    assert len(alone) == len(beside) == 3
    assert len({request.tenant for request in engine.requests}) == 2
    fairness._report(alone, beside)
    assert "ratio of the p95" in capsys.readouterr().out
