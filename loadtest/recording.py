"""What a load test saw, second by second, beside what the server says of itself: the source of the report."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from loadtest.load_summary import percentiles

KINDS = {"TTFT": "ms", "ITL": "ms", "RATE": "tok/s"}
DRIFTING = {
    "time to first token p50, ms": ("TTFT", "p50"),
    "between tokens p50, ms": ("ITL", "p50"),
    "answer tok/s": ("answer_tok_s",),
    "acceptance": ("acceptance",),
    "resident memory, MB": ("memory_mb",),
    "open files": ("open_files",),
}
TOLERANCE = 0.05  # by how much client and server may differ

Metrics = Mapping[str, float]


@dataclass(kw_only=True)
class ClientTotals:
    """What the client counted over the whole run."""

    completed: int = 0
    aborted: int = 0  # left by the client, on purpose
    failed: int = 0
    prompt_tokens: int = 0  # of completed answers
    answer_tokens: int = 0  # of completed answers
    aborted_tokens: int = 0  # seen of answers that were left
    ttft_seconds: float = 0.0  # summed over completed and aborted answers that gave a token
    num_first_tokens: int = 0
    decode_seconds: float = 0.0  # first to last token, summed over completed answers
    decode_tokens: int = 0


@dataclass(kw_only=True)
class Recorder:
    """Gathers events and samples; knows nothing of Locust."""

    totals: ClientTotals = field(default_factory=ClientTotals)
    samples: list[dict[str, Any]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)
    _recent: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _all: defaultdict[str, defaultdict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    _first: Metrics = field(default_factory=dict)
    _last: Metrics = field(default_factory=dict)
    _previous_second: float = 0.0

    def observe(self, kind: str, name: str, value: float) -> None:
        """Note one time to first token, gap between tokens, or rate."""
        self._recent[kind].append(value)
        self._all[kind][name].append(value)

    def begin(self, server: Metrics) -> None:
        """Forget an earlier run; note the server's counters before the first request, if it has any."""
        vars(self).update(vars(Recorder()))
        self._first = self._last = server

    def sample(self, second: float, users: int, server: Metrics) -> None:
        """Close an interval: percentiles of what was observed since the last one, rates of the counters."""
        elapsed = max(second - self._previous_second, 1e-9)
        entry: dict[str, Any] = {"second": round(second, 2), "users": users}
        for kind in KINDS:
            entry[kind] = percentiles(self._recent.pop(kind, ()), digits=1)
        if server:
            entry |= server_rates(self._last, server, elapsed)
            self._last = server
        self.samples.append(entry)
        self._previous_second = second

    def result(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "totals": vars(self.totals),
            "errors": dict(self.errors.most_common(20)),
            "latencies": {
                kind: {
                    name: percentiles(values, digits=1) | {"count": len(values)}
                    for name, values in of.items()
                }
                for kind, of in self._all.items()
            },
            "samples": self.samples,
            "agreement": agreement(self.totals, self._first, self._last) if self._last else [],
            "drift": drift(self.samples),
        }


def server_rates(before: Metrics, after: Metrics, seconds: float) -> dict[str, float]:
    """Return what the server did in an interval: tokens a second, hit and acceptance shares, gauges."""

    def delta(name: str) -> float:
        return after.get(f"draftline_{name}", 0.0) - before.get(f"draftline_{name}", 0.0)

    found = {
        "answer_tok_s": delta("generation_tokens_total") / seconds,
        "prompt_tok_s": delta("prompt_tokens_total") / seconds,
        "running": after.get("draftline_num_requests_running", 0.0),
        "waiting": after.get("draftline_num_requests_waiting", 0.0),
        "kv_cache_usage": after.get("draftline_kv_cache_usage_perc", 0.0),
        "memory_mb": after.get("process_resident_memory_bytes", 0.0) / 1e6,
        "open_files": after.get("process_open_fds", 0.0),
    }
    for name, part, whole in (
        ("hit_share", "prefix_cache_hits_total", "prefix_cache_queries_total"),
        ("acceptance", "spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"),
    ):
        if delta(whole) > 0:
            found[name] = delta(part) / delta(whole)
    return {name: round(value, 4) for name, value in found.items()}


def agreement(totals: ClientTotals, before: Metrics, after: Metrics) -> list[dict[str, Any]]:
    """Set the client's totals beside the server's; nothing else may use the server meanwhile.

    When a client leaves, tokens are generated that it has not read: token counts agree less, the more answers
    are left. So do answers, by those that were open when the run was stopped.
    """

    def delta(name: str) -> float:
        return after.get(f"draftline_{name}", 0.0) - before.get(f"draftline_{name}", 0.0)

    def mean(name: str) -> float:
        return delta(f"{name}_sum") / (delta(f"{name}_count") or 1.0)

    rows = (
        ("answers, left ones too", totals.completed + totals.aborted, delta("request_success_total")),
        ("answer tokens", totals.answer_tokens + totals.aborted_tokens, delta("generation_tokens_total")),
        ("mean time to first token, ms", _mean_ms(totals.ttft_seconds, totals.num_first_tokens),
         1e3 * mean("time_to_first_token_seconds")),
        ("mean time per further token, ms", _mean_ms(totals.decode_seconds, totals.decode_tokens),
         1e3 * mean("inter_token_latency_seconds")),
    )  # fmt: skip
    return [
        {"figure": name, "client": round(ours, 2), "server": round(theirs, 2), "agrees": agrees(ours, theirs)}
        for name, ours, theirs in rows
    ]


def drift(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Set the second quarter of a run beside its last: what a soak must keep flat; nothing for a short run.

    The first quarter warms caches and fills the allocator. `change` is relative.
    """
    busy = [sample for sample in samples if sample["users"] > 0]
    quarter = len(busy) // 4
    if quarter < 5:
        return []
    rows = []
    for name, path in DRIFTING.items():
        early, late = (
            _mean_of(part, path) for part in (busy[quarter : 2 * quarter], busy[len(busy) - quarter :])
        )
        if early is not None and late is not None:
            change = round(late / early - 1, 4) if early else 0.0
            rows.append({"figure": name, "early": round(early, 3), "late": round(late, 3), "change": change})
    return rows


def _mean_of(samples: Sequence[Mapping[str, Any]], path: Sequence[str]) -> float | None:
    """Return the mean of the figure at `path` over the samples that have it."""
    found = []
    for sample in samples:
        value: Any = sample
        for key in path:
            value = value.get(key) if value else None
        if value is not None:
            found.append(value)
    return fmean(found) if found else None


def agrees(ours: float, theirs: float) -> bool:
    """Say whether two figures differ by at most 5 % of the larger one."""
    return abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs))


def _mean_ms(seconds: float, count: int) -> float:
    return 1e3 * seconds / count if count else 0.0
