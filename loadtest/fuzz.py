"""python -m loadtest.fuzz: thousands of requests that no client would send, in fields and in raw bytes.

Starts a server of its own. No answer may be a 5xx or take longer than 5 seconds, no error may have more than
4 KB, and at the end the server must hold what it held before, and answer as it did.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx

from loadtest.environment import environment
from loadtest.server_process import end_servers_on_signals, running_draftline

_MAX_SECONDS, _MAX_BYTES = 5.0, 4096
_ENDPOINTS: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": "The sea", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/cache/lookup": {"prompt": "The sea"},
    "/v1/distribution": {"prompt": "The sea"},
    "/v1/attention": {"prompt": "The sea", "layer": 0},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1, 2]},
}
_NAMES = """
    model prompt messages input max_tokens max_completion_tokens min_tokens temperature top_p top_k
    min_p typical_p presence_penalty frequency_penalty repetition_penalty logit_bias
    allowed_token_ids bad_words n best_of seed stop stop_token_ids echo ignore_eos logprobs
    top_logprobs prompt_logprobs response_format structured_outputs stream stream_options tools
    tool_choice suffix cache_salt user speculation priority deadline_ms max_queue_ms dimensions
    encoding_format reasoning metadata instructions text system thinking stop_sequences tokens
    add_special_tokens cache_explain layer nonsense
""".split()
_MEMBERS = "type schema name content role a json_schema properties regex choice".split()
_WORDS = (
    *("", "x", "\x00", "\ud800", "é" * 40, "{", "[[", "(a|b)*c"),
    *("json_object", "auto", "none", "required", "$ref"),
)
_NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**63, -(2**63), 10**30)


def main(arguments: Sequence[str]) -> None:
    """Run the fuzzer; ends with code 1 if anything was found."""
    parser = argparse.ArgumentParser("loadtest.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8792)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    end_servers_on_signals()
    with running_draftline(
        options.model, options.port, "--max-model-len", "512", "--enable-attention"
    ) as server:
        fuzzer = Fuzzer(server.spec.base_url, server.pid, options.seed)
        asyncio.run(fuzzer.run(options.requests))
    for line in fuzzer.found[:20]:
        print("FOUND:", line)
    print("statuses", dict(sorted(fuzzer.statuses.items())), f"slowest {fuzzer.slowest:.2f} s")
    figures = {"slowest_s": round(fuzzer.slowest, 2), "found": len(fuzzer.found), **fuzzer.growth}
    result = {
        "benchmark": "fuzz",
        **environment(),
        "requests": options.requests,
        "seed": options.seed,
        **figures,
    }
    print(json.dumps(result))
    sys.exit(1 if fuzzer.found else 0)


class Fuzzer:
    """Sends requests, some at a time, and notes what should not be."""

    def __init__(self, url: str, pid: int, seed: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.found: list[str] = []
        self.slowest = 0.0
        self.growth: dict[str, float] = {}
        self._url, self._pid = url, pid
        self._chance = random.Random(seed)

    async def run(self, num_requests: int, *, idle_seconds: float = 12.0) -> None:
        """Send so many requests; the first tenth warms the server up.

        After the last it is left alone for `idle_seconds`, in which memory of a peak goes back.
        """
        async with httpx.AsyncClient(base_url=self._url, timeout=30.0) as client:
            expected = await self._golden(client)
            await self._send_all(client, num_requests // 10)
            before = _held(self._pid)
            await self._send_all(client, num_requests - num_requests // 10)
            if await self._golden(client) != expected:
                self.found.append("the answer afterwards is another")
            await asyncio.sleep(idle_seconds)
            after = _held(self._pid)
        self.growth = {f"more_{name}": round(after[name] - before[name], 1) for name in before}
        if self.growth["more_descriptors"] > 20 or self.growth["more_mebibytes"] > 100:
            self.found.append(f"the server holds {after}, before it was {before}")

    async def _send_all(self, client: httpx.AsyncClient, count: int) -> None:
        numbers = iter(range(count))

        async def work() -> None:
            for _ in numbers:
                await (self._send_bytes() if self._chance.random() < 0.25 else self._send_fields(client))

        await asyncio.gather(*(work() for _ in range(8)))

    async def _golden(self, client: httpx.AsyncClient) -> str:
        body = {"prompt": "Once upon a time", "max_tokens": 20, "seed": 1, "temperature": 1}
        return str((await client.post("/v1/completions", json=body)).json()["choices"][0]["text"])

    async def _send_fields(self, client: httpx.AsyncClient) -> None:
        path, base = self._chance.choice(list(_ENDPOINTS.items()))
        names = self._chance.choices(_NAMES, k=self._chance.randrange(1, 4))
        content = json.dumps({**base, **{name: self._value(3) for name in names}})
        if self._chance.random() < 0.1:
            content = content[: self._chance.randrange(len(content))]
        started = time.perf_counter()
        reply = await client.post(path, content=content, headers={"content-type": "application/json"})
        self._judge(reply.status_code, len(reply.content), time.perf_counter() - started, f"{path} {content}")

    async def _send_bytes(self) -> None:
        """Send a request with some of its bytes changed, and read until the server ends or is silent."""
        path, base = self._chance.choice(list(_ENDPOINTS.items()))
        body = json.dumps(base).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        request = bytearray(
            head.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
        )
        for _ in range(self._chance.randrange(1, 6)):
            place = self._chance.randrange(len(request))
            piece = self._chance.choice((b"\r\n", b"\x00", b"\xff", b":", b"9" * 20, b"", bytes(300)))
            request[place : place + self._chance.randrange(3)] = piece
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self._url.rsplit(":", 1)[1]))
        try:
            writer.write(bytes(request))
            writer.write_eof()  # an unfinished request is answered or left by this
            answer = await asyncio.wait_for(reader.read(), 25.0)
        except (ConnectionError, OSError):
            answer = b""
        except asyncio.TimeoutError:
            self.found.append(f"no end of {bytes(request)!r}")
            return
        finally:
            writer.close()
        statuses = re.findall(rb"^HTTP/1.1 (\d{3}) ", answer, re.MULTILINE)  # interim ones come first
        status, seconds = int(statuses[-1]) if statuses else 0, time.perf_counter() - started
        self._judge(status, len(answer), seconds, repr(bytes(request)))

    def _judge(self, status: int, num_bytes: int, seconds: float, request: str) -> None:
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        is_error = status >= 400
        is_asked_for = (status == 504 and "deadline_ms" in request) or (
            status == 503 and "max_queue_ms" in request
        )
        if status >= 500 and not is_asked_for:
            self.found.append(f"{status}: {request[:500]}")
        if seconds > _MAX_SECONDS:
            self.found.append(f"{seconds:.1f} s: {request[:500]}")
        if is_error and num_bytes > _MAX_BYTES:
            self.found.append(f"{num_bytes} bytes: {request[:500]}")

    def _value(self, depth: int) -> object:
        kind = self._chance.randrange(8 if depth else 5)
        if kind == 0:
            return None
        if kind == 1:
            return self._chance.random() < 0.5
        if kind in (2, 3):
            return self._chance.choice(_NUMBERS)
        if kind == 4:
            return self._chance.choice(_WORDS)
        count = self._chance.randrange(4)
        if kind == 5:
            return [self._value(depth - 1) for _ in range(count)]
        names = (
            "type",
            "schema",
            "name",
            "content",
            "role",
            "a",
            "json_schema",
            "properties",
            "regex",
            "choice",
        )
        return {self._chance.choice(names): self._value(depth - 1) for _ in range(count)}


def _held(pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "mebibytes": int(resident.split()[1]) / 1024,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
