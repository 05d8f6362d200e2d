"""Locust for real, as a process of its own (it patches sockets), against a server around a fake engine."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from loadtest.environment import ROOT
from tests.fakes import FakeEngine, cut, say
from tests.server.harness import serving

pytestmark = pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="locust is not installed")

USERS = ["CompletionUser", "SharedPrefixUser", "ChatUser", "CopyUser", "TraceUser", "ImpatientUser"]
KEY = "a-secret-key"


@pytest.fixture(scope="module")
def server():
    engine = FakeEngine(
        lambda request: cut(say("word " * 80), request.params.max_tokens), max_model_len=1_000_000
    )
    with serving(engine, keys=[KEY]) as running:
        yield running


def locust(server, *flags: str, files: str = "loadtest/locustfile.py", key: str = KEY):
    command = [sys.executable, "-m", "locust", "-f", files, "--headless", "-H", server.url, *flags]
    environment = os.environ | {"LOADTEST_MODEL": "fake", "LOADTEST_API_KEY": key}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_user_and_the_report(server, tmp_path):
    target = tmp_path / "report.html"
    size = ("-u", "12", "-r", "12", "-t", "4s")
    result = locust(server, *size, "--report", str(target), "--max-ttft-p95", "60000")
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(target.with_suffix(".json").read_text())
    names = {"completion", "shared prefix", "chat", "copy", "trace", "left early"}
    assert names <= set(figures["latencies"]["TTFT"])
    assert set(figures["latencies"]) == {"TTFT", "ITL", "RATE"}
    assert figures["totals"]["completed"] > 10
    assert figures["totals"]["aborted"] > 0
    assert figures["errors"] == {}
    assert len(figures["samples"]) >= 3
    assert figures["agreement"][0]["server"] > 10
    assert "Passed" in target.read_text()


def test_failures_and_limits_fail_the_run(server, tmp_path):
    target = tmp_path / "report.html"
    size = ("-u", "1", "-t", "2s", "--report", str(target), "CompletionUser")
    refused = locust(server, *size, key="another-wrong-key")
    assert refused.returncode == 1
    assert "requests failed" in refused.stdout
    assert "401" in target.read_text()
    slow = locust(server, "--min-rate-p50", "1e12", "--max-ttft-p95", "0.0001", *size)
    assert slow.returncode == 1
    assert "FAILED: TTFT p95 of completion" in slow.stdout
    assert "FAILED: RATE p50 of completion" in slow.stdout


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        ("ramp", ("--step-users", "1", "--step-seconds", "1.5", "--steps", "2")),
        ("burst", ("--base-users", "1", "--burst-users", "3", "--burst-period", "2", "--burst-length", "1",
                   "--burst-duration", "4")),
    ],
)  # fmt: skip
def test_shapes_change_the_number_of_users(server, tmp_path, shape, flags):
    target = tmp_path / "report.html"
    files = f"loadtest/locustfile.py,loadtest/shapes/{shape}.py"
    result = locust(server, *flags, "--report", str(target), "CompletionUser", files=files)
    assert result.returncode == 0, result.stdout + result.stderr
    users = {sample["users"] for sample in json.loads(target.with_suffix(".json").read_text())["samples"]}
    assert len(users - {0}) >= 2


def test_every_kind_of_user_is_in_the_locustfile():
    source = (ROOT / "loadtest" / "locustfile.py").read_text()
    for name in USERS:
        assert f"class {name}(StreamingUser)" in source
