"""Load on any OpenAI-style server: closed loop or open loop, percentiles and goodput under an SLO.

    python -m loadtest.serve --base-url http://127.0.0.1:8000 --concurrency 16
    python -m loadtest.serve --base-url http://127.0.0.1:8000 --rate 2.5 --slo-ttft-ms 1000 --slo-tpot-ms 50

Closed loop: `--concurrency` streams, each sends its next request when its last one ended. Open loop: requests
arrive at `--rate` a second whatever the server does, with exponential gaps (a Poisson process), as users
do; a server that cannot keep up shows it in TTFT. Prompts are made from a word list and --seed: every server
gets the same bytes at the same planned times. Prints a table, then one JSON line.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.environment import environment
from loadtest.http_load import stream_completion
from loadtest.load_summary import Outcome, Slo, summarize
from loadtest.workloads import mixed_lengths, prompt, words


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server and how to ask it."""

    base_url: str
    model: str
    api_key: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """One request, decided before the run starts."""

    prompt: str
    max_tokens: int
    at: float = 0.0  # seconds after the start; open loop only


def arrival_times(count: int, rate: float, seed: object) -> list[float]:
    """Return `count` arrival times of a Poisson process with `rate` arrivals a second, from 0 on."""
    rng, now, times = random.Random(f"arrivals {seed}"), 0.0, []
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate)
    return times


def plan(arguments: argparse.Namespace) -> list[PlannedRequest]:
    """Decide every request of a run from the arguments alone."""
    count, seed = arguments.num_requests, arguments.seed
    lengths = [(arguments.prompt_tokens, arguments.max_tokens)] * count
    if arguments.mixed:
        lengths = mixed_lengths(seed, count)
    prefix = (
        prompt(("shared", seed), arguments.shared_prefix_tokens) if arguments.shared_prefix_tokens else ""
    )
    times = arrival_times(count, arguments.rate, seed) if arguments.rate else [0.0] * count
    return [
        PlannedRequest(prompt=_join(prefix, (seed, i), prompt_tokens), max_tokens=max_tokens, at=at)
        for i, ((prompt_tokens, max_tokens), at) in enumerate(zip(lengths, times, strict=True))
    ]


def _join(prefix: str, seed: object, num_tokens: int) -> str:
    return f"{prefix}\n{words(seed, num_tokens)}" if prefix else prompt(seed, num_tokens)


async def send(target: Target, request: PlannedRequest, *, lateness: float = 0.0) -> Outcome:
    """Send one request; a failure is an outcome, not an exception."""
    body = {"model": target.model, "prompt": request.prompt, "max_tokens": request.max_tokens}
    try:
        timing = await stream_completion(target.base_url, body, api_key=target.api_key)
    except (RuntimeError, OSError, EOFError) as error:
        return Outcome(error=f"{type(error).__name__}: {error}", lateness=lateness)
    return Outcome(timing=timing, lateness=lateness)


async def closed_loop(target: Target, requests: Sequence[PlannedRequest], concurrency: int) -> list[Outcome]:
    """Keep `concurrency` requests open until all are done."""
    waiting: Iterator[PlannedRequest] = iter(requests)
    outcomes: list[Outcome] = []

    async def stream() -> None:
        for request in waiting:
            outcome = await send(target, request)
            outcomes.append(outcome)

    await asyncio.gather(*(stream() for _ in range(concurrency)))
    return outcomes


async def open_loop(target: Target, requests: Sequence[PlannedRequest]) -> list[Outcome]:
    """Start every request at its planned time, however many are open."""
    started = time.perf_counter()

    async def arrive(request: PlannedRequest) -> Outcome:
        await asyncio.sleep(max(0.0, started + request.at - time.perf_counter()))
        return await send(target, request, lateness=time.perf_counter() - started - request.at)

    return await asyncio.gather(*(arrive(request) for request in requests))


def run(
    target: Target, requests: Sequence[PlannedRequest], *, concurrency: int, slo: Slo
) -> dict[str, object]:
    """Run a load and summarize it; `concurrency` 0 means open loop."""
    started = time.perf_counter()
    load = closed_loop(target, requests, concurrency) if concurrency else open_loop(target, requests)
    outcomes = asyncio.run(load)
    return summarize(outcomes, time.perf_counter() - started, slo)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="without /v1")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--api-key", default="")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=int, default=0, help="closed loop: open streams (default: 8)")
    loop.add_argument("--rate", type=float, default=0.0, help="open loop: arrivals a second")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--mixed", action="store_true", help="lengths of a chat trace instead")
    parser.add_argument("--shared-prefix-tokens", type=int, default=0, help="a prefix that all prompts share")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0)
    parser.add_argument("--slo-tpot-ms", type=float, default=200.0)
    arguments = parser.parse_args(argv)
    if min(arguments.num_requests, arguments.prompt_tokens, arguments.max_tokens) < 1:
        parser.error("--num-requests, --prompt-tokens and --max-tokens must be at least 1")
    if arguments.concurrency < 0 or arguments.rate < 0:
        parser.error("--concurrency and --rate must be positive")
    if not arguments.rate and not arguments.concurrency:
        arguments.concurrency = 8
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Run one load and print it."""
    arguments = parse(argv)
    target = Target(base_url=arguments.base_url, model=arguments.model, api_key=arguments.api_key)
    slo = Slo(ttft=arguments.slo_ttft_ms / 1e3, tpot=arguments.slo_tpot_ms / 1e3)
    result = run(target, plan(arguments), concurrency=arguments.concurrency, slo=slo)
    for name, value in result.items():
        print(f"{name:24} {value}")
    shape = {name: value for name, value in vars(arguments).items() if name != "api_key"}
    print(json.dumps({"benchmark": "serve"} | environment() | {"arguments": shape} | result))
    if result["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
