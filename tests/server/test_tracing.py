"""Spans of requests: under the caller's trace, with the engine's parts, and nothing of what was said."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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

        while len(exporter.get_finished_spans()) < 10:  # they are made when an answer has left
            time.sleep(0.005)

    spans = exporter.get_finished_spans()
    names = {"queue": 2, "prefill": 2, "decode": 2, "POST /v1/completions": 3, "GET other": 1}
    assert Counter(span.name for span in spans) == names
    assert "secret" not in str([span.to_json() for span in spans])
    wholes = [span for span in spans if span.name == "POST /v1/completions"]
    statuses = [dict(span.attributes or {})["http.response.status_code"] for span in wholes]
    assert sorted(statuses, key=str) == [200, 200, 415]
    for whole, status in zip(wholes, statuses, strict=True):
        if status == 200:
            parts = [span for span in spans if span.parent and span.parent.span_id == whole.context.span_id]
            check_answer(whole, parts, began)


def check_answer(whole: ReadableSpan, parts: Sequence[ReadableSpan], began: int) -> None:
    assert [part.name for part in parts] == ["queue", "prefill", "decode"]
    assert f"{whole.context.trace_id:x}" == TRACE
    attributes = dict(whole.attributes or {})
    assert attributes["gen_ai.usage.input_tokens"] == 6
    assert attributes["gen_ai.usage.output_tokens"] == 5
    assert attributes["http.request.header.x-request-id"] == "mine"
    moments = [span.start_time for span in (whole, *parts)] + [whole.end_time]
    known = [moment for moment in moments if moment is not None]
    assert len(known) == 5
    assert began - 1_000_000_000 < known[0], "two clocks are read one after the other"
    assert known == sorted(known)


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    with pytest.raises(ConfigError, match=r"pip install 'draftline\[tracing\]'"):
        open_tracing("http://localhost:4318/v1/traces")


def test_an_endpoint_that_is_not_there_harms_nobody() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(open_tracing("http://127.0.0.1:9/v1/traces").close).result(20)
