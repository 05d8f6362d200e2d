"""Prometheus metrics: latencies observed by the server, counters read from the engine when scraped."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine.interface.info import EngineInfo
from engine.interface.outputs import FinishReason
from engine.interface.stats import EngineStats

_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
)


_MAX_KEY_NAMES = 256  # as labels; further ones are "other"

_RATIO_BUCKETS = (0.5, 0.8, 0.9, 0.95, 0.97, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)


class Histogram:
    """Values in buckets; one bisection per observation, no lock: only the event loop writes."""

    def __init__(self, name: str, documentation: str, *, bounds: Sequence[float] = _BUCKETS) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Record `count` events of the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def family(self, model_name: str) -> Metric:
        """Return the histogram in Prometheus's cumulative form."""
        cumulative = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            cumulative += count
            buckets.append((str(bound), cumulative))
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model_name"])
        family.add_metric([model_name], buckets, self._sum)
        return family


class ServerMetrics(Collector):
    """Everything on /metrics; written on the event loop, collected there too.

    Latencies and finish reasons count choices: a request for three answers is three of each.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, with_key_names: bool = False
    ) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self.time_to_first_token = Histogram(
            "draftline_time_to_first_token_seconds", "From the arrival of the request to its first token."
        )
        self.inter_token_latency = Histogram(
            "draftline_inter_token_latency_seconds", "Between one token and the next of the same choice."
        )
        self.e2e_request_latency = Histogram(
            "draftline_e2e_request_latency_seconds", "From the arrival of the request to its last token."
        )
        self.request_queue_time = Histogram(
            "draftline_request_queue_time_seconds", "From submission to the first step that ran the choice."
        )
        self.speedup = Histogram(
            "draftline_spec_decode_speedup_ratio",
            "Of choices with drafts: estimated time without speculation over time with it.",
            bounds=_RATIO_BUCKETS,
        )
        self.num_disconnected = 0
        self._finished: Counter[FinishReason] = Counter()
        self._responses: Counter[tuple[str, int]] = Counter()
        self._with_key_names = with_key_names
        self._key_tokens: Counter[tuple[str, str]] = Counter()  # by name and kind
        self._model_name = ""
        self._stats: Callable[[], EngineStats] | None = None
        self._info: EngineInfo | None = None
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def publish(
        self, model_name: str, stats: Callable[[], EngineStats], info: EngineInfo | None = None
    ) -> None:
        """Report the engine behind `stats` under `model_name` from now on."""
        self._model_name = model_name
        self._stats, self._info = stats, info

    def count_finished(self, reason: FinishReason) -> None:
        """Count one choice that ended."""
        self._finished[reason] += 1

    def count_response(self, endpoint: str, status: int) -> None:
        """Count one HTTP answer; `endpoint` is a route's template, never a path from the client."""
        self._responses[endpoint, status] += 1

    def count_tokens(self, key_name: str | None, *, prompt: int, completion: int) -> None:
        """Count the tokens of one request, by its key's name where that is asked for."""
        if not self._with_key_names:
            return
        name = key_name or "unnamed"
        if (name, "prompt") not in self._key_tokens and len(self._key_tokens) >= 2 * _MAX_KEY_NAMES:
            name = "other"
        self._key_tokens[name, "prompt"] += prompt
        self._key_tokens[name, "completion"] += completion

    def describe(self) -> list[Metric]:
        """Name nothing: collecting at registration would find no model."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self._server_metrics()
        if self._info is not None:
            yield _engine_info(self._info, self._model_name)
        if self._stats is not None:
            yield from _engine_metrics(self._stats(), self._model_name)

    def _server_metrics(self) -> Iterator[Metric]:
        for histogram in (
            self.time_to_first_token,
            self.inter_token_latency,
            self.e2e_request_latency,
            self.request_queue_time,
            self.speedup,
        ):
            yield histogram.family(self._model_name)
        success = CounterMetricFamily(
            "draftline_request_success",
            "Choices that ended, by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason in FinishReason:
            success.add_metric([self._model_name, reason.value], self._finished[reason])
        yield success
        yield _counter(
            "draftline_requests_disconnected",
            "Requests whose client left before the answer was complete.",
            self.num_disconnected,
            self._model_name,
        )
        responses = CounterMetricFamily(
            "draftline_http_responses", "HTTP answers.", labels=["endpoint", "status"]
        )
        for (endpoint, status), count in self._responses.items():
            responses.add_metric([endpoint, str(status)], count)
        yield responses
        if self._with_key_names:
            tokens = CounterMetricFamily(
                "draftline_key_tokens", "Tokens by the key that asked.", labels=["key_name", "kind"]
            )
            for (name, kind), count in self._key_tokens.items():
                tokens.add_metric([name, kind], count)
            yield tokens


def _engine_info(info: EngineInfo, model_name: str) -> Metric:
    family = InfoMetricFamily(
        "draftline_engine", "What runs the model, and what is promised of its answers.", labels=["model_name"]
    )
    names = ("device", "kernels", "dtype", "kv_cache_dtype", "numerics")
    family.add_metric([model_name], {name: getattr(info, name) for name in names})
    return family


def _engine_metrics(stats: EngineStats, model_name: str) -> Iterator[Metric]:
    for name, documentation, gauge in (
        ("num_requests_running", "Choices that run.", stats.num_requests_running),
        ("num_requests_waiting", "Choices that wait for a place.", stats.num_requests_waiting),
        ("kv_cache_usage_perc", "Share of the KV blocks that are held, from 0 to 1.", stats.kv_cache_usage),
        ("engine_step_seconds", "How long the present step has been running.", stats.seconds_since_step),
    ):
        yield _gauge(f"draftline_{name}", documentation, gauge, model_name)
    for name, documentation, counter in (
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
        ("num_preemptions", "Times a running choice lost its blocks.", stats.num_preemptions),
        ("prompt_tokens", "Prompt tokens of choices that started.", stats.prompt_tokens),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens),
        ("engine_steps", "Steps of the engine.", stats.num_steps),
        ("spec_decode_num_drafts", "Drafts that were verified.", stats.num_drafts),
        ("spec_decode_num_draft_tokens", "Tokens of drafts.", stats.num_draft_tokens),
        ("spec_decode_num_accepted_tokens", "Draft tokens that were right.", stats.num_accepted_tokens),
        ("engine_execute_seconds", "Time in which the model ran.", stats.execute_seconds),
    ):
        yield _counter(f"draftline_{name}", documentation, counter, model_name)
    yield _by_position("num_draft_tokens_per_pos", "Draft tokens", stats.drafted_by_position, model_name)
    yield _by_position("num_accepted_tokens_per_pos", "Right ones", stats.accepted_by_position, model_name)


def _by_position(name: str, what: str, counts: Sequence[int], model_name: str) -> Metric:
    family = CounterMetricFamily(
        f"draftline_spec_decode_{name}",
        f"{what} by their position in the draft, from 0.",
        labels=["model_name", "position"],
    )
    for position, count in enumerate(counts):
        family.add_metric([model_name, str(position)], count)
    return family


def _gauge(name: str, documentation: str, value: float, model_name: str) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=["model_name"])
    family.add_metric([model_name], value)
    return family


def _counter(name: str, documentation: str, value: float, model_name: str) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=["model_name"])
    family.add_metric([model_name], value)
    return family
