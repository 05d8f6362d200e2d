"""python -m loadtest.chaos: everything that may happen to a server, and right answers after each of it.

Starts a server of its own with an engine process and a cache directory. After each trouble every golden
answer must be what it was in the quiet time before, and the server must hold no more than then. Prints what
became of the requests; ends with code 1 at the first broken promise.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx

from loadtest.chaos_server import ChaosError, ChaosServer, kill, question, raw
from loadtest.environment import environment

Trouble = Callable[[ChaosServer, httpx.AsyncClient, random.Random], Awaitable[None]]


async def kill_the_engine(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """kill -9 of the engine in mid-stream; every stream must say so within a second."""
    streams = [asyncio.ensure_future(server.stream(client, number)) for number in range(8)]
    await asyncio.sleep(chance.uniform(0.05, 0.4))
    kill(server.engine_pid, signal.SIGKILL)
    killed = time.monotonic()
    await asyncio.gather(*streams)
    if time.monotonic() - killed > 2.0:
        raise ChaosError(f"streams heard of the engine's end after {time.monotonic() - killed:.1f} s")


async def stall_the_engine(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """A stall that ends: streams go on where they were."""
    streams = [asyncio.ensure_future(server.stream(client, number)) for number in range(6)]
    await asyncio.sleep(chance.uniform(0.05, 0.3))
    pid = server.engine_pid
    kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1.0)
    kill(pid, signal.SIGCONT)
    await asyncio.gather(*streams)


async def stall_for_long(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """A stall that does not end: the engine is given up and started again."""
    streams = [asyncio.ensure_future(server.stream(client, number)) for number in range(4)]
    await asyncio.sleep(chance.uniform(0.05, 0.3))
    kill(server.engine_pid, signal.SIGSTOP)
    await asyncio.gather(*streams)


async def leave_in_every_state(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Clients that go after any number of bytes, and at any moment of their stream."""
    body = json.dumps({**question(4), "stream": True, "max_tokens": 200}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    for _ in range(30):
        connection = raw(server.port, request[: chance.randrange(1, len(request) + 200)])
        await asyncio.sleep(chance.choice((0.0, 0.002, 0.02, 0.1)))
        connection.close()
    streams = [asyncio.ensure_future(server.stream(client, number)) for number in range(8)]
    await asyncio.sleep(chance.uniform(0.0, 0.3))
    for stream in streams[::2]:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def send_what_is_hostile(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Requests that must be refused with a 4xx, among them grammars that crash or hang what compiles them."""
    primes = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}
    chain = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schemas = [primes, {"$ref": "#/$defs/d0", "$defs": {**chain, "d40": {"type": "null"}}}]
    bodies = [
        *({"prompt": "x", "structured_outputs": {"json": schema}, "max_tokens": 1} for schema in schemas),
        {"prompt": "x" * 500_000, "max_tokens": 1},
        {"prompt": ["x"] * 2000},
        {"prompt": "x", "n": 10**9},
        {"prompt": "x", "logit_bias": {str(number): 1 for number in range(5000)}},
        {"prompt": "\ud800"},
    ]
    for body in chance.sample(bodies, len(bodies)):
        reply = await client.post("/v1/completions", content=json.dumps(body), headers=_JSON)
        if reply.status_code >= 500 or len(reply.content) > 100_000:
            raise ChaosError(f"a hostile request was answered with {reply.status_code}")
        server.tally.count("hostile")
    for piece in (
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n\r\n",
        b"{" * 9999,
    ):
        raw(server.port, piece).close()


async def read_nothing(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Streams that nobody reads, beside some that are read."""
    body = json.dumps({**question(1), "stream": True, "max_tokens": 400, "logprobs": 20}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    silent = [raw(server.port, request, receive_buffer=4096) for _ in range(12)]
    await asyncio.gather(*(server.stream(client, chance.randrange(10)) for _ in range(4)))
    for connection in silent:
        connection.close()


async def flood(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Headers without end, idle connections, and more requests than the queue holds."""
    endless = [raw(server.port, b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 20_000) for _ in range(10)]
    idle = [raw(server.port) for _ in range(50)]
    await asyncio.gather(*(server.stream(client, chance.randrange(10)) for _ in range(120)))
    if (await client.get("/health")).status_code != 200:
        raise ChaosError("/health did not answer in a flood")
    for connection in endless + idle:
        connection.close()


async def damage_the_cache(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Files of the cache directory cut, changed and deleted, then an engine that must read them."""
    files = sorted((server.cache / "blocks").iterdir())
    for file in chance.sample(files, min(len(files), 20)):
        content = bytearray(file.read_bytes())
        kind = chance.randrange(3)
        if kind == 0:
            file.unlink(missing_ok=True)
        elif kind == 1:
            file.write_bytes(content[: chance.randrange(len(content) + 1)])
        elif content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
    kill(server.engine_pid, signal.SIGKILL)
    await asyncio.sleep(0.2)
    await server.until_ready(client)


async def end_it_under_load(server: ChaosServer, client: httpx.AsyncClient, chance: random.Random) -> None:
    """SIGTERM while streams run: they end, the process leaves with 0, and its successor is warm."""
    streams = [asyncio.ensure_future(server.stream(client, number)) for number in range(8)]
    await asyncio.sleep(chance.uniform(0.05, 0.3))
    server.process.terminate()
    await asyncio.gather(*streams)
    code = await asyncio.to_thread(server.process.wait, 40)
    if code != 0:
        raise ChaosError(f"SIGTERM ended the server with code {code}")
    server.restart()
    await server.until_ready(client)


_JSON = {"content-type": "application/json"}
TROUBLES: Sequence[Trouble] = (
    kill_the_engine,
    stall_the_engine,
    leave_in_every_state,
    send_what_is_hostile,
    read_nothing,
    flood,
    damage_the_cache,
    end_it_under_load,
)
SLOW_TROUBLES: Sequence[Trouble] = (stall_for_long,)
_KILLING = (kill_the_engine, stall_for_long, damage_the_cache)
_MAX_KILLS = 4  # of one server's engine: after a sixth in ten minutes it leaves, as it should


async def run(server: ChaosServer, troubles: Sequence[Trouble], *, seconds: float, seed: int) -> int:
    """Make every trouble once, then more in a random order until the time is over; return how many."""
    chance, ends = random.Random(seed), time.monotonic() + seconds
    num_made = num_kills = 0
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=server.url, timeout=60.0, limits=limits) as client:
        await server.until_ready(client)
        await server.learn(client)
        await server.check_answers(client)
        before = await server.resources(client)
        while num_made < len(troubles) or time.monotonic() < ends:
            trouble = troubles[num_made] if num_made < len(troubles) else chance.choice(troubles)
            num_kills += trouble in _KILLING
            if num_kills > _MAX_KILLS:
                trouble = end_it_under_load
            if trouble is end_it_under_load:
                num_kills = 0
            await trouble(server, client, chance)
            await server.until_ready(client)
            await server.check_answers(client)
            await server.check_resources(client, before)
            server.tally.count(trouble.__name__)
            num_made += 1
    return num_made


def main(arguments: Sequence[str]) -> None:
    """Run for so many minutes and print the counts and one JSON line."""
    parser = argparse.ArgumentParser("loadtest.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8791)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = ChaosServer(options.port, Path(folder) / "cache", log, "--max-queue", "64")
        try:
            troubles = (*TROUBLES, *SLOW_TROUBLES)
            num_made = asyncio.run(run(server, troubles, seconds=60 * options.minutes, seed=options.seed))
        except BaseException:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        finally:
            server.close()
    counts = dict(sorted(server.tally.outcomes.items()))
    for outcome, count in counts.items():
        print(f"{outcome:30} {count:8}")
    result = {"benchmark": "chaos", **environment(), "troubles": num_made, "seed": options.seed, **counts}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
