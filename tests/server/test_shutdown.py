"""Signals to a real process; no new work, streams finish, exit code 0, a second signal at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
BODY = {"prompt": "x", "stream": True}


@dataclass(frozen=True)
class Process:
    """A server process and its address."""

    popen: subprocess.Popen[str]
    url: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, verify=False)

    def tell(self, command: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{command}\n")
        self.popen.stdin.flush()

    def wait_until_ready(self) -> None:
        while self.get("/ready").status_code != 200:
            pass

    def wait_until_draining(self) -> None:
        while self.get("/ready").json().get("error", {}).get("code") != "draining":
            pass


@contextlib.contextmanager
def running(mode: str = "ready", *, shutdown_timeout: float = 30.0) -> Iterator[Process]:
    command = [sys.executable, str(ROOT / "tests/server/fake_server.py"), str(shutdown_timeout), mode]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as popen:
        try:
            assert popen.stdout is not None
            process = Process(popen=popen, url=f"http://127.0.0.1:{popen.stdout.readline().strip()}")
            if mode == "ready":
                process.wait_until_ready()
            yield process
        finally:
            popen.kill()


@contextlib.contextmanager
def stepping_stream(process: Process) -> Iterator[httpx.Response]:
    """Open a stream and let its first token come."""
    with httpx.Client(timeout=30, verify=False) as client:
        process.tell("step when open")
        request = client.build_request("POST", f"{process.url}/v1/completions", json=BODY)
        response = client.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_leaves_with_code_0_though_connections_are_kept_alive(number: signal.Signals) -> None:
    with running() as process, httpx.Client(verify=False) as client:
        client.get(f"{process.url}/health")
        process.popen.send_signal(number)
        assert process.popen.wait(10) == 0
        assert process.popen.stdout is not None
        assert process.popen.stdout.read() == "engine closed\n"


def test_streams_finish_while_new_work_is_refused() -> None:
    with running() as process, stepping_stream(process) as response:
        process.popen.send_signal(signal.SIGTERM)
        process.wait_until_draining()
        ready = process.get("/ready")
        assert ready.status_code == 503
        assert "retry-after" in ready.headers
        refused = httpx.post(f"{process.url}/v1/completions", json={"prompt": "x"}, verify=False)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert process.get("/health").status_code == 200
        process.tell("release")
        text = response.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert text.count('"text":"') == len("hello") + 1
        assert process.popen.wait(10) == 0


def test_what_does_not_finish_in_time_ends_with_an_error_event() -> None:
    with running(shutdown_timeout=0.2) as process, stepping_stream(process) as response:
        process.popen.send_signal(signal.SIGTERM)
        text = response.read().decode()
        assert "[DONE]" not in text
        assert "\n\nevent: error\ndata: " in text
        assert process.popen.wait(10) == 0


def test_a_second_signal_leaves_at_once() -> None:
    with running() as process, stepping_stream(process):
        process.popen.send_signal(signal.SIGTERM)
        process.wait_until_draining()
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(10) == 128 + signal.SIGTERM


def test_a_signal_while_the_model_loads() -> None:
    with running("loading") as process:
        assert process.get("/ready").json()["error"]["code"] == "loading"
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(10) == 0


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    with running("failing") as process:
        _, errors = process.popen.communicate(timeout=10)
        assert process.popen.returncode == 1  # the script's traceback; the command line says it in one line
        assert "ConfigError: no such model" in errors


def test_a_dead_engine_ends_the_server_once_its_streams_are_told() -> None:
    with running() as process, stepping_stream(process) as response:
        events = response.iter_lines()
        assert next(events).startswith("data: ")
        process.tell("die")
        assert any("the engine has failed" in line for line in events)
        _, errors = process.popen.communicate(timeout=10)
        assert process.popen.returncode not in (0, None)
        assert "EngineDeadError: the engine failed" in errors


def test_a_signal_ends_the_process_though_a_step_hangs() -> None:
    with running(shutdown_timeout=0.5) as process, stepping_stream(process) as response:
        assert next(response.iter_lines())
        process.tell("hang")
        started = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(10) == 1
        assert time.monotonic() - started < 0.5 + 5
        assert "a step of the engine does not end" in (
            process.popen.stderr.read() if process.popen.stderr else ""
        )


def test_whatever_hangs_a_signal_ends_the_process() -> None:
    """Here the event loop itself, some time after the signal."""
    code = (
        "import logging, signal, sys, threading, time; logging.basicConfig()\n"
        "from server import http_server\n"
        "http_server._LAST_RESORT = 0.3\n"
        "http_server.DrainingServer.stop = lambda self: time.sleep(60)\n"
        "sys.argv = ['x', '0.2', 'ready']\n"
        "from tests.server.fake_server import main\n"
        "main(0.2, 'ready')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as popen:
        assert popen.stdout is not None
        url = f"http://127.0.0.1:{popen.stdout.readline().strip()}"
        Process(popen=popen, url=url).wait_until_ready()
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(10) == 1
        assert popen.stderr is not None
        assert "the shutdown does not end" in popen.stderr.read()
