"""A streaming completions client that costs the machine as little as possible while it measures.

Client and server share the cores in these tests: plain sockets, no JSON parsed before the last chunk.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
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
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        started = time.perf_counter()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"%bConnection: close\r\nContent-Length: %d\r\n\r\n"
            % (url.netloc.encode(), _authorization(api_key), len(payload))
            + payload
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r}: {(await reader.read(4096))!r}")
        return await _read_stream(reader, started)
    finally:
        writer.close()


def _authorization(api_key: str) -> bytes:
    return f"Authorization: Bearer {api_key}\r\n".encode() if api_key else b""


async def _read_stream(reader: asyncio.StreamReader, started: float) -> StreamTiming:
    chunk_times, texts, usage, done = [], [], None, False
    while line := await reader.readline():
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
            chunk_times.append(time.perf_counter() - started)
            texts.append(line)
    if not done or usage is None or not chunk_times:
        raise RuntimeError("the stream ended early")
    return StreamTiming(
        chunk_times=tuple(chunk_times),
        total=time.perf_counter() - started,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        text="".join(json.loads(line[6:])["choices"][0]["text"] for line in texts),
    )
