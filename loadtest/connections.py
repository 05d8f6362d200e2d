"""python -m loadtest.connections: 1,000 connections at once, of which 300 say nothing and 100 read slowly.

Starts a server of its own. Everyone who is accepted must get an answer, others a 429 soon; /health must
answer throughout.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median, quantiles

from loadtest.environment import environment
from loadtest.server_process import end_servers_on_signals, running_draftline

_REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
)


def main(arguments: Sequence[str]) -> None:
    """Run it, print what became of everybody and one JSON line; code 1 where a promise was broken."""
    parser = argparse.ArgumentParser("loadtest.connections", description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=300)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--spread", type=float, default=0.0, help="seconds over which they come")
    parser.add_argument("--port", type=int, default=8793)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    end_servers_on_signals()
    with running_draftline(options.model, options.port) as server:
        figures = asyncio.run(_run(server.spec.port, options))
    for name, value in figures.items():
        print(f"{name:32} {value}")
    print(json.dumps({"benchmark": "connections", **environment(), **figures}))
    sys.exit(1 if figures["other"] or figures["incomplete"] else 0)


async def _run(port: int, options: argparse.Namespace) -> dict[str, float]:
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(options.idle)]
    probing = asyncio.ensure_future(_probe(port))
    num_asking = options.connections - options.idle
    answers = await asyncio.gather(
        *(
            _ask(port, number, is_slow=number < options.slow, delay=options.spread * number / num_asking)
            for number in range(num_asking)
        )
    )
    probing.cancel()
    probes = await probing
    for _, writer in idle:
        writer.close()
    refusals = [seconds for status, _, seconds in answers if status == 429]
    return {
        "answered": sum(status == 200 and is_whole for status, is_whole, _ in answers),
        "incomplete": sum(status == 200 and not is_whole for status, is_whole, _ in answers),
        "refused": len(refusals),
        "other": sum(status not in (200, 429) for status, _, _ in answers),
        "refusal_p50_ms": _ms(median(refusals)) if refusals else 0.0,
        "refusal_p95_ms": _ms(quantiles(refusals, n=20)[-1]) if len(refusals) > 1 else 0.0,
        "health_p50_ms": _ms(median(probes)),
        "health_max_ms": _ms(max(probes)),
        "probes": len(probes),
    }


async def _ask(port: int, number: int, *, is_slow: bool, delay: float) -> tuple[int, bool, float]:
    """Wait, then return the status, whether the answer is whole, and the seconds until its first byte."""
    body = {"prompt": f"Story {number}:", "max_tokens": 32, "ignore_eos": True, "stream": True}
    content = json.dumps(body).encode()
    await asyncio.sleep(delay)
    started = time.perf_counter()
    async with _connected(port) as (reader, writer):
        writer.write(_REQUEST % (len(content), content))
        answer = await reader.read(100)
        seconds = time.perf_counter() - started
        while piece := await reader.read(200 if is_slow else 65536):
            answer = answer[:100] + (answer + piece)[-100:]
            if is_slow:
                await asyncio.sleep(0.02)
    return int(answer.split(b" ", 2)[1]), b"[DONE]" in answer, seconds


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _probe(port: int) -> list[float]:
    """Ask for /health all the time, on a new connection each time, and return how long each took."""
    times = []
    try:
        while True:
            started = time.perf_counter()
            async with _connected(port) as (reader, writer):
                writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                await reader.read()
            times.append(time.perf_counter() - started)
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return times


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
