"""What a comparison measures on each server, and what the figures mean."""

import asyncio
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.http_load import StreamTiming, stream_completion
from loadtest.server_process import ServerSpec
from loadtest.workloads import copy_prompt, prompt, shared_prefix_prompts

EXECUTE_SECONDS = "draftline_engine_execute_seconds_total"
NUM_WARM = 3


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A row of the table."""

    key: str
    label: str
    unit: str
    more_is_better: bool = True
    is_compared: bool = True  # False: a figure of one server alone


MEASURES = (
    Measure(key="single_tok_s", label="one stream, decode", unit="tok/s"),
    Measure(key="single_ttft_ms", label="one stream, time to first token", unit="ms", more_is_better=False),
    Measure(key="copy_tok_s", label="one stream that copies its prompt, decode", unit="tok/s"),
    Measure(key="streams_16_tok_s", label="16 streams, together", unit="tok/s"),
    Measure(key="streams_32_tok_s", label="32 streams, together", unit="tok/s"),
    Measure(key="prefill_tok_s", label="prefill of 1,000 tokens", unit="tok/s"),
    Measure(key="cold_ttft_ms", label="first token after 1,000 new tokens", unit="ms", more_is_better=False),
    Measure(key="warm_ttft_ms", label="first token, 1,000 tokens cached", unit="ms", more_is_better=False),
    Measure(key="cold_over_warm", label="cold over warm", unit="times", is_compared=False),
    Measure(key="share_of_bandwidth", label="share of the memory limit", unit="%", is_compared=False),
    Measure(key="overhead_1_percent", label="HTTP and Python, one stream", unit="%", is_compared=False),
    Measure(key="overhead_32_percent", label="HTTP and Python, 32 streams", unit="%", is_compared=False),
    Measure(key="start_s", label="start until ready", unit="s", more_is_better=False),
    Measure(key="memory_mb", label="memory after the run (PSS)", unit="MB", more_is_better=False),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long the cases are; the defaults are the ones to publish."""

    prompt_tokens: int = 128
    max_tokens: int = 128
    long_prompt_tokens: int = 1000

    def body(self, server: ServerSpec, text: str, max_tokens: int | None = None) -> dict[str, object]:
        """Return the body of a request."""
        length = max_tokens or self.max_tokens
        return {"model": server.model, "prompt": text, "max_tokens": length, **server.body}


Case = Callable[[ServerSpec, int, Scale], dict[str, float]]


def single(server: ServerSpec, number: int, scale: Scale) -> dict[str, float]:
    """One stream: decode rate and time to first token."""
    execute, started = _execute_seconds(server), time.perf_counter()
    [timing] = _together(server, [scale.body(server, prompt(("single", number), scale.prompt_tokens))])
    figures = {"single_tok_s": timing.decode_rate, "single_ttft_ms": 1e3 * timing.ttft}
    return figures | _overhead(server, execute, started, "overhead_1_percent")


def copy(server: ServerSpec, number: int, scale: Scale) -> dict[str, float]:
    """One stream on a text that repeats itself: where speculation helps most."""
    [timing] = _together(server, [scale.body(server, copy_prompt(("copy", number), scale.prompt_tokens))])
    return {"copy_tok_s": timing.decode_rate}


def streams(count: int) -> Case:
    """Return the case of `count` streams that start together; their prompts count as time, not as tokens."""

    def case(server: ServerSpec, number: int, scale: Scale) -> dict[str, float]:
        texts = [prompt((count, number, i), scale.prompt_tokens) for i in range(count)]
        execute, started = _execute_seconds(server), time.perf_counter()
        timings = _together(server, [scale.body(server, text) for text in texts])
        seconds = time.perf_counter() - started
        figures = {f"streams_{count}_tok_s": sum(t.completion_tokens for t in timings) / seconds}
        return figures | _overhead(server, execute, started, f"overhead_{count}_percent")

    return case


def prefix(server: ServerSpec, number: int, scale: Scale) -> dict[str, float]:
    """A long prompt nobody has seen, then the same beginning with other ends."""
    texts = shared_prefix_prompts(("prefix", number), scale.long_prompt_tokens, 1 + NUM_WARM)
    cold, *warm = [_together(server, [scale.body(server, text, 2)])[0] for text in texts]
    warm_ttft = sorted(timing.ttft for timing in warm)[len(warm) // 2]
    return {
        "cold_ttft_ms": 1e3 * cold.ttft,
        "prefill_tok_s": (cold.prompt_tokens - cold.cached_tokens) / cold.ttft,
        "warm_ttft_ms": 1e3 * warm_ttft,
        "cold_over_warm": cold.ttft / warm_ttft,
    }


CASES: Mapping[str, Case] = {
    "single": single,
    "copy": copy,
    "streams_16": streams(16),
    "streams_32": streams(32),
    "prefix": prefix,
}


def _together(server: ServerSpec, bodies: list[dict[str, object]]) -> list[StreamTiming]:
    async def run() -> list[StreamTiming]:
        return await asyncio.gather(*(stream_completion(server.base_url, body) for body in bodies))

    return asyncio.run(run())


def _overhead(server: ServerSpec, execute: float | None, started: float, key: str) -> dict[str, float]:
    """Share of the time since `started` in which no batch was executed: HTTP, text, bookkeeping."""
    seconds, now = time.perf_counter() - started, _execute_seconds(server)
    if execute is None or now is None:
        return {}
    return {key: 100 * (1 - (now - execute) / seconds)}


def _execute_seconds(server: ServerSpec) -> float | None:
    """Return how long the engine has executed batches, if the server tells (draftline does)."""
    if not server.name.startswith("draftline"):
        return None
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    values = [line.rpartition(" ")[2] for line in lines if line.startswith(EXECUTE_SECONDS)]
    return float(values[0]) if values else None
