"""OpenTelemetry: a span for each request, with its time in the queue, over its prompt and over its answer.

Spans are made when a request has ended, from the times that it noted: no token waits for any of it. Needs the
extra `tracing`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.interface.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_NANOSECONDS = 1e9


@dataclass(frozen=True, kw_only=True)
class Timings:
    """When the engine did what; seconds of time.perf_counter()."""

    submitted: float
    queue_seconds: float  # until the first step that ran it
    first_token: float
    last_token: float


@dataclass(frozen=True, kw_only=True)
class TracedRequest:
    """What a span says of a request that ended."""

    method: str
    route: str
    status: int
    request_id: str
    started: float  # time.perf_counter()
    ended: float
    headers: Mapping[str, str]  # of which traceparent and tracestate are read
    prompt_tokens: int | None
    completion_tokens: int | None
    timings: Timings | None


class Tracing:
    """Makes spans and hands them to what exports them."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("draftline")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, request: TracedRequest) -> None:
        """Make the spans of a request: its own under the caller's, and the engine's parts under that."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        wall_time = _wall_clock()
        attributes: dict[str, str | int] = {
            "http.request.method": request.method,
            "http.route": request.route,
            "http.response.status_code": request.status,
            "http.request.header.x-request-id": request.request_id,
        }
        if request.prompt_tokens is not None:
            attributes["gen_ai.usage.input_tokens"] = request.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = request.completion_tokens or 0
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=self._propagator.extract(request.headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=wall_time(request.started),
        )
        if request.timings is not None:
            self._record_parts(request.timings, set_span_in_context(span), wall_time)
        span.end(end_time=wall_time(request.ended))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

    def _record_parts(self, timings: Timings, parent: "Context", wall_time: Callable[[float], int]) -> None:
        ran = min(timings.submitted + timings.queue_seconds, timings.first_token)
        parts = (
            ("queue", timings.submitted, ran),
            ("prefill", ran, timings.first_token),
            ("decode", timings.first_token, timings.last_token),
        )
        for name, start, end in parts:
            span = self._tracer.start_span(name, context=parent, start_time=wall_time(start))
            span.end(end_time=wall_time(max(start, end)))


def open_tracing(endpoint: str) -> Tracing:
    """Return what exports spans to an OTLP endpoint over HTTP; raises ConfigError without the extra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("--otlp-traces-endpoint needs: pip install 'draftline[tracing]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "draftline"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


def _wall_clock() -> Callable[[float], int]:
    """Return what makes nanoseconds since 1970 of time.perf_counter(), for all spans of a request."""
    offset = time.time_ns() - time.perf_counter_ns()
    return lambda moment: offset + int(moment * _NANOSECONDS)
