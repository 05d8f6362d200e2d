"""Spans of requests: under the caller's trace, with the engine's parts, and nothing of what was said."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engine.interface.errors import ConfigError
from server.admission import Admission
from server.app import create_app
from server.auth import KeyRing
from server.http_server import DrainingServer
from server.metrics import ServerMetrics
from server.serving import RequestLimits, ServerState
from server.tracing import Tracing, open_tracing
from tests.fakes import FakeEngine, say
from tests.server.harness import running, served_model

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_request_is_a_span_with_parts_under_the_callers_trace() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    state = ServerState(admission=Admission(max_open=10), metrics=ServerMetrics(), limits=RequestLimits())
    state.publish(served_model(FakeEngine(lambda _: say("hello"))))
    app = create_app(state, keys=KeyRing(), tracing=Tracing(provider))
    began = time.time_ns()
    with running(DrainingServer(app, state, shutdown_timeout=5.0)) as (_, client, _):
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "mine"}
        for body in ({"prompt": "secret"}, {"prompt": "secret", "stream": True}):
            assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/nowhere").status_code == 404
        assert (
            client.post("/v1/completions", content=b"no json", headers={"traceparent": "x"}).status_code
            == 415
        )

    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        *("queue", "prefill", "decode", "POST /v1/completions") * 2,
        "GET other",
        "POST /v1/completions",
    ]
    assert "secret" not in str([span.to_json() for span in spans])
    for first in (0, 4):
        check_answer(spans[first : first + 4], began)
    assert spans[-1].attributes is not None
    assert spans[-1].attributes["http.response.status_code"] == 415


def check_answer(spans: tuple[ReadableSpan, ...], began: int) -> None:
    *parts, whole = spans
    assert f"{whole.context.trace_id:x}" == TRACE
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.usage.input_tokens"] == 6
    assert whole.attributes["gen_ai.usage.output_tokens"] == 5
    assert whole.attributes["http.request.header.x-request-id"] == "mine"
    assert all(part.parent is not None and part.parent.span_id == whole.context.span_id for part in parts)
    slack = 5_000_000  # two clocks are read one after the other
    moments = [whole.start_time, *(part.start_time for part in parts), whole.end_time]
    assert all(moment is not None for moment in moments)
    assert began - slack < moments[0]
    assert all(earlier <= later + slack for earlier, later in pairwise(moments))


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(ConfigError, match=r"pip install 'draftline\[tracing\]'"):
        open_tracing("http://localhost:4318/v1/traces")


def test_an_endpoint_that_is_not_there_harms_nobody() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(open_tracing("http://127.0.0.1:9/v1/traces").close).result(20)
