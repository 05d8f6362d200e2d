"""A streaming completions client that costs the machine as little as possible while it measures.

Client and server share the cores in these tests: bytes are kept as they come and read after the last.
"""

import asyncio
import itertools
import json
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_NO_TEXT = (b'"text":""', b'"text": ""', b'"choices":[]', b'"choices": []')


@dataclass(frozen=True)
class StreamTiming:
    """One streamed answer, seen from the client; times in seconds from sending the request."""

    chunk_times: tuple[float, ...]  # arrival of each chunk with text
    total: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    text: str = ""

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.chunk_times[0]

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first one."""
        return 1.0 / self.tpot if self.tpot else 0.0

    @property
    def tpot(self) -> float:
        """Seconds per token after the first one; 0 for an answer of one token or one chunk."""
        return (self.chunk_times[-1] - self.chunk_times[0]) / max(1, self.completion_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between one chunk and the next: several tokens in a chunk count once."""
        return [later - earlier for earlier, later in itertools.pairwise(self.chunk_times)]


async def stream_completion(base_url: str, body: Mapping[str, object], *, api_key: str = "") -> StreamTiming:
    """POST /v1/completions with stream on; raises RuntimeError on any other answer than a whole stream.

    Greedy and without an end unless `body` says otherwise; a field that is None is left out.
    """
    url = urlsplit(base_url)
    defaults = {"temperature": 0, "ignore_eos": True}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    fields = {name: value for name, value in {**defaults, **body, **stream}.items() if value is not None}
    payload = json.dumps(fields).encode()
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(
        _Connection, url.hostname or "127.0.0.1", url.port or 80
    )
    try:
        started = time.perf_counter()
        transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"%bConnection: close\r\nContent-Length: %d\r\n\r\n"
            % (url.netloc.encode(), _authorization(api_key), len(payload))
            + payload
        )
        await connection.closed
    finally:
        transport.close()
    received = bytes(connection.received)
    status, _, rest = received.partition(b"\r\n")
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {rest[:4096]!r}")
    return read_stream(received, [(size, seconds - started) for size, seconds in connection.arrivals])


class _Connection(asyncio.Protocol):
    """Keeps what arrives and when; nothing is looked at before the end, when the server closes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.arrivals: list[tuple[int, float]] = []  # bytes so far, time.perf_counter()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Keep what has arrived."""
        self.received += data
        self.arrivals.append((len(self.received), time.perf_counter()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        if self.closed.done():
            return
        if exc is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(exc)


def _authorization(api_key: str) -> bytes:
    return f"Authorization: Bearer {api_key}\r\n".encode() if api_key else b""


def read_stream(received: bytes, arrivals: Sequence[tuple[int, float]]) -> StreamTiming:
    """Read a whole response, of whose first so many bytes it is known when they had arrived."""
    chunk_times, texts, usage, done, end = [], [], None, False, 0
    for line in received.splitlines(keepends=True):
        end += len(line)
        if not line.startswith(b"data: "):
            continue  # headers, chunk sizes, blank lines
        if line.startswith(b"data: [DONE]"):
            done = True
            continue
        if (
            b'"usage":{' in line or b'"usage": {' in line
        ):  # a last chunk of its own, or the last of the choice
            usage = json.loads(line[6:])["usage"]
        if not any(mark in line for mark in _NO_TEXT):
            chunk_times.append(arrivals[bisect_left(arrivals, (end,))][1])
            texts.append(line)
    if not done or usage is None or not chunk_times:
        raise RuntimeError("the stream ended early")
    return StreamTiming(
        chunk_times=tuple(chunk_times),
        total=arrivals[-1][1],
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        text="".join(json.loads(line[6:])["choices"][0]["text"] for line in texts),
    )
