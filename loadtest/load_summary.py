"""What a load run was like: percentiles, throughput, and goodput under a service level objective."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.http_load import StreamTiming

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Service level objective of one request, in seconds."""

    ttft: float
    tpot: float

    def is_met_by(self, timing: StreamTiming) -> bool:
        """Say whether both limits were kept."""
        return timing.ttft <= self.ttft and timing.tpot <= self.tpot


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request of a load run: its times, or why it failed."""

    timing: StreamTiming | None = None
    error: str = ""
    lateness: float = 0.0  # open loop: seconds between its planned and its real start


def percentiles(values: Iterable[float], *, scale: float = 1.0, digits: int = 2) -> dict[str, float]:
    """Return p50, p90, p95, p99 and the mean of `values` times `scale`; nothing for no values."""
    array = np.asarray(list(values), dtype=float) * scale
    if not array.size:
        return {}
    named = {f"p{q}": float(np.percentile(array, q)) for q in PERCENTILES} | {"mean": float(array.mean())}
    return {name: round(value, digits) for name, value in named.items()}


def summarize(outcomes: Sequence[Outcome], seconds: float, slo: Slo) -> dict[str, object]:
    """Return the figures of a run that took `seconds`; times in milliseconds.

    Goodput counts the requests that met the objective, per second and as a share of all, failed ones too.
    """
    timings = [outcome.timing for outcome in outcomes if outcome.timing is not None]
    errors = [outcome.error for outcome in outcomes if outcome.timing is None]
    good = sum(slo.is_met_by(timing) for timing in timings)
    output_tokens = sum(timing.completion_tokens for timing in timings)
    prompt_tokens = sum(timing.prompt_tokens for timing in timings)
    return {
        "requests": len(outcomes),
        "failed": len(errors),
        "first_error": errors[0][:200] if errors else None,
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(timings) / seconds, 3),
        "output_tok_s": round(output_tokens / seconds, 2),
        "prompt_tok_s": round(prompt_tokens / seconds, 2),
        "output_tokens": output_tokens,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(timing.cached_tokens for timing in timings),
        "ttft_ms": percentiles((timing.ttft for timing in timings), scale=1e3),
        "itl_ms": percentiles((gap for timing in timings for gap in timing.gaps), scale=1e3),
        "tpot_ms": percentiles((t.tpot for t in timings if t.completion_tokens > 1), scale=1e3),
        "e2e_ms": percentiles((timing.total for timing in timings), scale=1e3),
        "lateness_ms": percentiles((outcome.lateness for outcome in outcomes), scale=1e3),
        "slo": {"ttft_ms": 1e3 * slo.ttft, "tpot_ms": 1e3 * slo.tpot},
        "goodput_requests_per_s": round(good / seconds, 3),
        "goodput_share": round(good / len(outcomes), 4) if outcomes else 0.0,
    }
