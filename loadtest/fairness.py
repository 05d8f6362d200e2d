"""python -m loadtest.fairness: one key keeps 200 long jobs queued while another chats; whose time is it?

Starts a server of its own with two keys, measures the chat's time to first token alone, then beside the jobs.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

from loadtest.environment import environment
from loadtest.http_load import stream_completion
from loadtest.server_process import ServerProcess, ServerSpec, end_servers_on_signals

_KEYS = {"batch": "key-of-the-batch", "chat": "key-of-the-chat"}
_WORDS = "the sea wind stone river light under over green house walks sings night morning far near".split()


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print a table and one JSON line."""
    parser = argparse.ArgumentParser("loadtest.fairness", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200, help="that are queued at once")
    parser.add_argument("--job-tokens", type=int, default=1000, help="of each job's answer")
    parser.add_argument(
        "--job-temperature", type=float, default=1.0, help="0: answers that repeat themselves"
    )
    parser.add_argument("--chats", type=int, default=30, help="requests of the chat in each part")
    parser.add_argument("--prompt-words", type=int, default=200, help="of a chat's request")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds from the jobs to the chat")
    parser.add_argument("--port", type=int, default=8790)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    end_servers_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        tables = [f'[[key]]\nname = "{name}"\nkey = "{key}"\n' for name, key in _KEYS.items()]
        keys.write_text("\n".join(tables))
        with ServerProcess(_spec(options, keys), Path(folder) / "log") as server:
            alone, beside = asyncio.run(_measure(server.spec.base_url, options))
    _report(alone, beside)


def _spec(options: argparse.Namespace, keys: Path) -> ServerSpec:
    flags = ["--port", str(options.port), "--model", options.model, "--api-key-file", str(keys)]
    queue = ["--max-queue", str(options.jobs + 100), "--max-connections", str(options.jobs + 100)]
    return ServerSpec(
        name="draftline",
        command=(sys.executable, "-m", "server", "serve", *flags, *queue),
        port=options.port,
        model=options.model,
        weight_bytes=0,
        ready_path="/ready",
    )


async def _measure(url: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    await _chat(url, options, 5, seed=1)
    alone = await _chat(url, options, options.chats, seed=2)
    jobs = [asyncio.ensure_future(_job(url, options, number)) for number in range(options.jobs)]
    await asyncio.sleep(options.settle)
    beside = await _chat(url, options, options.chats, seed=3)
    num_open = sum(not job.done() for job in jobs)
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    if num_open < options.jobs // 4:
        raise SystemExit("too few jobs were left at the end to say anything: --job-tokens")
    return alone, beside


async def _chat(url: str, options: argparse.Namespace, count: int, *, seed: int) -> list[float]:
    """Return the times to first token of requests one after the other, each with a prompt of its own."""
    chance = random.Random(seed)
    times = []
    for _ in range(count):
        prompt = " ".join(chance.choices(_WORDS, k=options.prompt_words))
        timing = await stream_completion(url, {"prompt": prompt, "max_tokens": 16}, api_key=_KEYS["chat"])
        times.append(timing.ttft)
        await asyncio.sleep(0.2)
    return times


async def _job(url: str, options: argparse.Namespace, number: int) -> None:
    body = {
        "prompt": f"Job {number}: " + " ".join(_WORDS),
        "max_tokens": options.job_tokens,
        "temperature": options.job_temperature,
    }
    await stream_completion(url, body, api_key=_KEYS["batch"])


def _report(alone: Sequence[float], beside: Sequence[float]) -> None:
    figures: dict[str, float] = {}
    print("time to first token, ms      p50      p95")
    for name, times in (("alone", alone), ("beside_jobs", beside)):
        p50, p95 = (1000 * value for value in (median(times), quantiles(times, n=20)[-1]))
        figures |= {f"{name}_p50_ms": round(p50, 1), f"{name}_p95_ms": round(p95, 1)}
        print(f"{name:24} {p50:8.1f} {p95:8.1f}")
    ratio = figures["beside_jobs_p95_ms"] / figures["alone_p95_ms"]
    print(f"ratio of the p95: {ratio:.2f}")
    result = {"benchmark": "fairness", **environment(), **figures, "p95_ratio": round(ratio, 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
