"""Streams over HTTP from a process of their own: prints their rate as JSON.

python -m tests.gpu.http_client URL STREAMS PROMPT_TOKENS ANSWER_TOKENS ROUNDS
"""

import asyncio
import json
import random
import statistics
import sys
import time

from loadtest.http_load import StreamTiming, stream_completion

_IDS = 200  # of tokens to prompt with: bytes, that every vocabulary has


async def one_round(
    url: str, *, streams: int, prompt_tokens: int, answer_tokens: int, seed: int
) -> list[StreamTiming]:
    """Send one request a stream, all at once, and wait for the last."""
    rng = random.Random(seed)
    bodies = [
        {
            "model": "model",
            "prompt": [rng.randrange(1, _IDS) for _ in range(prompt_tokens)],
            "max_tokens": answer_tokens,
            "temperature": 0.7,
            "seed": number,
        }
        for number in range(streams)
    ]
    return list(await asyncio.gather(*(stream_completion(url, body) for body in bodies)))


def main(arguments: list[str]) -> None:
    """Warm up with a short round, then measure."""
    url, (streams, prompt_tokens, answer_tokens, rounds) = arguments[0], map(int, arguments[1:])
    rates, timings = [], list[StreamTiming]()
    for number in range(rounds + 1):
        length = answer_tokens if number else min(8, answer_tokens)
        load = one_round(url, streams=streams, prompt_tokens=prompt_tokens, answer_tokens=length, seed=number)
        started = time.perf_counter()
        found = asyncio.run(load)
        elapsed = time.perf_counter() - started
        if number:
            rates.append(sum(timing.completion_tokens for timing in found) / elapsed)
            timings += found
    summary = {
        "tokens_per_second": statistics.median(rates),
        "ttft_ms": 1e3 * statistics.median(timing.ttft for timing in timings),
        "tpot_ms": 1e3 * statistics.median(timing.tpot for timing in timings),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
