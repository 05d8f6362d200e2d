"""draftline through HTTP against `transformers` generate in process, interleaved in one run.

    python -m loadtest.versus_transformers [--rounds 5]

Starts both (the same weights, bfloat16), alternates them round by round, and prints medians, ratios and
one JSON line. The comparison flatters transformers: it pays for no server and no streaming.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack

from loadtest.environment import environment
from loadtest.http_load import StreamTiming, stream_completion
from loadtest.server_process import end_servers_on_signals, running_draftline
from loadtest.workloads import prompt, shared_prefix_prompts

PORT = 8123
BASE_URL = f"http://127.0.0.1:{PORT}"
MODEL = "smollm2-135m-instruct"
NUM_PROMPT_TOKENS = 128
NUM_TOKENS = 128


class Transformers:
    """The worker process and its one-line protocol."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.transformers_worker", MODEL, "bfloat16"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def generate(self, seed: int) -> dict[str, float]:
        """Run one generation and return its times."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed} {NUM_PROMPT_TOKENS} {NUM_TOKENS}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        times: dict[str, float] = json.loads(self.process.stdout.readline())
        return times


async def streams(prompts: list[str], num_tokens: int) -> list[StreamTiming]:
    """Run all prompts at once."""
    bodies = [{"model": MODEL, "prompt": text, "max_tokens": num_tokens} for text in prompts]
    return await asyncio.gather(*(stream_completion(BASE_URL, body) for body in bodies))


def aggregate_rate(timings: list[StreamTiming]) -> float:
    """Answer tokens of all streams over the time until the last one ended, prompts included."""
    return sum(t.completion_tokens for t in timings) / max(t.total for t in timings)


def run_round(number: int, transformers: Transformers, results: "defaultdict[str, list[float]]") -> None:
    """One round of every case."""
    [single] = asyncio.run(streams([prompt(("single", number), NUM_PROMPT_TOKENS)], NUM_TOKENS))
    results["draftline_single_decode_tok_s"].append(single.decode_rate)
    theirs = transformers.generate(number)
    results["transformers_single_decode_tok_s"].append(theirs["decode_rate"])
    sixteen = [prompt(("many", number, i), NUM_PROMPT_TOKENS) for i in range(16)]
    results["draftline_16_streams_tok_s"].append(aggregate_rate(asyncio.run(streams(sixteen, NUM_TOKENS))))
    cold, *warm = shared_prefix_prompts(("prefix", number), 1000, 4)
    [timing] = asyncio.run(streams([cold], 2))
    results["prefix_cold_ttft_ms"].append(1e3 * timing.ttft)
    for text in warm:
        [timing] = asyncio.run(streams([text], 2))
        results["prefix_warm_ttft_ms"].append(1e3 * timing.ttft)
        results["prefix_warm_cached_tokens"].append(timing.cached_tokens)


def summary(results: "defaultdict[str, list[float]]") -> dict[str, float]:
    """Medians and the ratios that are asked for."""
    medians = {name: round(statistics.median(values), 2) for name, values in results.items()}
    reference = medians["transformers_single_decode_tok_s"]
    return medians | {
        "single_ratio": round(medians["draftline_single_decode_tok_s"] / reference, 2),
        "sixteen_streams_ratio": round(medians["draftline_16_streams_tok_s"] / reference, 2),
        "prefix_ratio": round(medians["prefix_cold_ttft_ms"] / medians["prefix_warm_ttft_ms"], 1),
    }


def main() -> None:
    """Start both, alternate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    results: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        stack.enter_context(running_draftline(MODEL, PORT))
        transformers = Transformers()
        stack.callback(transformers.process.wait)
        stack.callback(transformers.process.terminate)
        run_round(-1, transformers, defaultdict(list))  # warm-up
        for number in range(rounds):
            run_round(number, transformers, results)
            print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    medians = summary(results)
    for name, value in medians.items():
        print(f"{name:36} {value}")
    spread = {f"{name}_all": [round(v, 1) for v in values] for name, values in results.items()}
    print(
        json.dumps({"benchmark": "versus_transformers", "rounds": rounds} | environment() | medians | spread)
    )


if __name__ == "__main__":
    end_servers_on_signals()
    main()
