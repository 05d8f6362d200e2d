"""What chaos looks at: answers that must be right whatever happened, and what a server holds."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_QUESTIONS = 10
_RETRY_SECONDS, _READY_SECONDS = 0.1, 60.0
_MORE_DESCRIPTORS = 3  # a connection of the client's that is closed at this moment
_MORE_THREADS = 16  # pools that grow when they are first needed
_MORE_MEBIBYTES = 250  # caches of answers and of the allocator; a leak shows over many rounds


class ChaosError(AssertionError):
    """A promise that was broken."""


@dataclass(kw_only=True)
class Tally:
    """What became of requests."""

    outcomes: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: str) -> None:
        """Count one."""
        self.outcomes[outcome] += 1


@dataclass(frozen=True)
class Resources:
    """What a server holds."""

    descriptors: int
    threads: int
    mebibytes: float
    num_open: float


class ChaosServer:
    """A server under test, started again where a trouble ends it; its answers are known from a quiet time."""

    def __init__(self, port: int, cache: Path, log: Path, *flags: str) -> None:
        self.port, self.cache = port, cache
        self.url = f"http://127.0.0.1:{port}"
        self.tally = Tally()
        self._log = log
        self._flags = ["--port", str(port), "--kv-cache-dir", str(cache), "--engine-process", "on", *flags]
        self._golden: dict[int, str] = {}
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "server", "serve", *self._flags], stdout=log, stderr=log
            )

    def restart(self) -> None:
        """Start it again after it ended."""
        self.process = self._start()

    def close(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ChaosError("SIGTERM did not end the server within 40 s") from None

    @property
    def engine_pid(self) -> int:
        """Of the engine's process: the child that has the most memory, grammars' trials have little."""
        pids = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):
                pids += [int(pid) for pid in (task / "children").read_text().split()]
        return max(pids, key=_resident_bytes)

    async def until_ready(self, client: httpx.AsyncClient) -> float:
        """Return the seconds until it takes work."""
        started = time.monotonic()
        while time.monotonic() - started < _READY_SECONDS:
            if self.process.poll() is not None:
                raise ChaosError(f"the server ended with code {self.process.returncode}")
            with suppress(httpx.TransportError):
                if (await client.get("/ready")).status_code == 200:
                    return time.monotonic() - started
            await asyncio.sleep(_RETRY_SECONDS)
        raise ChaosError(f"the server was not ready within {_READY_SECONDS:g} s")

    async def learn(self, client: httpx.AsyncClient) -> None:
        """Ask every question once, in a quiet time."""
        for number in range(_QUESTIONS):
            self._golden[number] = await self._whole(client, number)

    async def check_answers(self, client: httpx.AsyncClient) -> None:
        """Ask every question again, together; raises ChaosError for an answer that is another."""
        answers = await asyncio.gather(*(self._whole(client, number) for number in range(_QUESTIONS)))
        for number, answer in enumerate(answers):
            self.judge(number, answer, is_whole=True)

    def judge(self, number: int, text: str, *, is_whole: bool) -> None:
        """Count an answer that is right as far as it goes; raises ChaosError for another."""
        expected = self._golden[number]
        if text != (expected if is_whole else expected[: len(text)]):
            raise ChaosError(f"question {number}: {text!r} is not {expected!r}, nor its beginning")
        self.tally.count("right" if is_whole else "ended with an error")

    async def stream(self, client: httpx.AsyncClient, number: int) -> None:
        """Stream an answer, which must be right, or right up to an error that says why it ended."""
        text, is_whole, has_error = "", False, False
        try:
            async with client.stream(
                "POST", "/v1/completions", json=question(number) | {"stream": True}
            ) as reply:
                if reply.status_code != 200:
                    self._count_refusal(reply.status_code)
                    return
                async for line in reply.aiter_lines():
                    is_whole |= line == "data: [DONE]"
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        has_error |= "error" in event
                        text += "".join(choice["text"] for choice in event.get("choices", ()))
        except httpx.TransportError as error:
            if self.process.poll() is None:
                raise ChaosError(f"a stream was cut without a word: {error!r}") from error
            self.tally.count("cut by the end of the server")
            return
        if not (is_whole or has_error):
            raise ChaosError("a stream ended without its end and without an error")
        self.judge(number, text, is_whole=is_whole and not has_error)

    async def resources(self, client: httpx.AsyncClient) -> Resources:
        """Return what it holds now."""
        lines = (await client.get("/metrics")).text.splitlines()
        values = {line.split("{")[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}
        pids = (self.process.pid, self.engine_pid)
        return Resources(
            descriptors=sum(_count(f"/proc/{pid}/fd") for pid in pids),
            threads=sum(_count(f"/proc/{pid}/task") for pid in pids),
            mebibytes=sum(map(_resident_bytes, pids)) / 2**20,
            num_open=values["draftline_num_requests_running"] + values["draftline_num_requests_waiting"],
        )

    async def check_resources(self, client: httpx.AsyncClient, before: Resources) -> None:
        """Wait until it holds no more than before; raises ChaosError if that does not come."""
        deadline = time.monotonic() + 20.0
        while True:
            now = await self.resources(client)
            is_back = (
                now.descriptors <= before.descriptors + _MORE_DESCRIPTORS
                and now.threads <= before.threads + _MORE_THREADS
                and now.mebibytes <= before.mebibytes + _MORE_MEBIBYTES
                and now.num_open == 0
            )
            if is_back:
                return
            if time.monotonic() > deadline:
                raise ChaosError(f"the server holds {now}, before it was {before}")
            await asyncio.sleep(0.2)

    async def _whole(self, client: httpx.AsyncClient, number: int) -> str:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            reply = await client.post("/v1/completions", json=question(number))
            if reply.status_code == 200:
                return str(reply.json()["choices"][0]["text"])
            self._count_refusal(reply.status_code)
            await asyncio.sleep(_RETRY_SECONDS)
        raise ChaosError("no answer within a minute")

    def _count_refusal(self, status: int) -> None:
        if status not in (429, 503):
            raise ChaosError(f"a good request was answered with {status}")
        self.tally.count(f"refused with {status}")


def question(number: int) -> dict[str, object]:
    """Return a request whose answer is the same every time."""
    body = {
        "prompt": f"Chapter {number}. " + "The sea was calm. " * (3 * number),
        "max_tokens": 24 + 4 * number,
    }
    if number % 3 == 1:
        return body | {"temperature": 0, "ignore_eos": True}
    if number % 3 == 2:
        return body | {"seed": number, "structured_outputs": {"regex": "[a-z ]{20,60}"}}
    return body | {"seed": number, "temperature": 0.9, "ignore_eos": True}


def raw(port: int, *pieces: bytes, receive_buffer: int | None = None) -> "RawConnection":
    """Return a connection that sends these pieces and then does nothing."""
    return RawConnection(port, pieces, receive_buffer)


class RawConnection:
    """A client that keeps to no protocol."""

    def __init__(self, port: int, pieces: Sequence[bytes], receive_buffer: int | None) -> None:
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(2.0)
        with suppress(OSError):  # refused, or closed in the middle: as it should be
            self._socket.connect(("127.0.0.1", port))
            for piece in pieces:
                self._socket.sendall(piece)

    def close(self) -> None:
        """Leave without a word."""
        self._socket.close()


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _count(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
