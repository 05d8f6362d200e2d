"""Health, readiness, metrics, models, tokens."""

import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from engine.interface.info import EngineInfo
from server.api.openapi import RANGES
from server.logs import JsonFormatter, TextFormatter
from server.text import Tokenizer
from tests.fakes import IM_END, IM_START, FakeEngine, byte_tokenizer_data, say
from tests.server.harness import RunningServer, served_model, serving


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


def sample(metrics: str, name: str) -> float:
    """Return the value of the one sample of this name and labels."""
    (line,) = [line for line in metrics.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


def test_ready_only_once_the_model_is_there() -> None:
    engine = FakeEngine()
    with serving(engine, is_loading=True) as server:
        refused = server.client.get("/ready")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "loading"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/health").json() == {"status": "loading"}
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")):
            response = server.client.request(method, path, json={"prompt": "x"})
            assert response.status_code == 503
            assert "retry-after" in response.headers
        assert server.client.get("/metrics").status_code == 200
        server.loop.call_soon_threadsafe(server.state.publish, served_model(engine))
        while server.client.get("/ready").status_code != 200:
            pass
        assert server.client.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_stalled_is_alive_but_not_ready(server: RunningServer) -> None:
    server.engine.seconds_since_step = 61.0
    try:
        assert server.client.get("/ready").json()["error"]["code"] == "stalled"
        assert server.client.get("/health").status_code == 200
        assert "draftline_engine_step_seconds" in server.client.get("/metrics").text
    finally:
        server.engine.seconds_since_step = 0.0
    assert server.client.get("/ready").json() == {"status": "ready"}


class BlockedTokenizer(Tokenizer):
    """A tokenizer that takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer_data())
        self.is_asked = threading.Event()
        self.may_go_on = threading.Event()

    def encode(self, text: str, **options: Any) -> list[int]:
        self.is_asked.set()
        assert self.may_go_on.wait(30)
        return super().encode(text, **options)


def test_everything_answers_while_a_large_prompt_is_tokenised() -> None:
    engine, tokenizer = FakeEngine(max_model_len=20_000), BlockedTokenizer()
    with serving(engine) as server:
        server.state.publish(replace(served_model(engine), tokenizer=tokenizer))
        with ThreadPoolExecutor(1) as pool:
            body = {"prompt": "x" * 10_000}
            answer = pool.submit(server.client.post, "/v1/completions", json=body)
            assert tokenizer.is_asked.wait(10)
            for path in ("/health", "/ready", "/metrics"):
                assert server.client.get(path).status_code == 200
            tokenizer.may_go_on.set()
            assert answer.result().status_code == 200


def test_models(server: RunningServer) -> None:
    listing = server.client.get("/v1/models").json()
    assert listing["object"] == "list"
    (card,) = listing["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("fake", "model", 4096)
    assert server.client.get("/v1/models/fake").json() == card
    assert server.client.get("/v1/models/org/other").status_code == 404


def test_tokenize_and_back(server: RunningServer) -> None:
    reply = server.client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert reply["tokens"] == list("hé".encode())
    assert reply["count"] == 3
    assert reply["max_model_len"] == 4096
    assert reply["token_strs"][0] == "h"
    text = server.client.post("/detokenize", json={"tokens": reply["tokens"]}).json()
    assert text == {"prompt": "hé"}
    assert server.client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_tokenize_messages(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}
    tokens = server.client.post("/tokenize", json=body).json()["tokens"]
    assert tokens == [IM_START, *b"user\na", IM_END, *b"\n"]
    detokenized = server.client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert detokenized == "<|im_start|>user\na<|im_end|>\n"
    both = server.client.post("/tokenize", json={**body, "prompt": "x"})
    assert both.status_code == 400


def test_a_large_text_is_tokenised_too(server: RunningServer) -> None:
    reply = server.client.post("/tokenize", json={"prompt": "ab" * 20_000}).json()
    assert reply["count"] == 40_000


def test_version_and_metrics_say_what_is_promised_of_answers() -> None:
    reason = "cuBLAS chooses its kernels by the number of rows"
    engine = FakeEngine()
    engine.info = EngineInfo(
        device="NVIDIA H200",
        dtype="bfloat16",
        kernels="torch",
        kv_cache_dtype="bfloat16",
        num_threads=1,
        max_model_len=1024,
        block_size=16,
        num_kv_blocks=64,
        kv_cache_bytes=1,
        weight_bytes=1,
        numerics="tolerance",
        numerics_reason=reason,
    )
    expected = {
        "device": "NVIDIA H200",
        "kernels": "torch",
        "dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
    }
    with serving(engine) as server:
        shown = server.client.get("/version").json()
        assert shown["engine"] == expected | {"numerics": "tolerance", "numerics_reason": reason}
        [line] = [
            line
            for line in server.client.get("/metrics").text.splitlines()
            if line.startswith("draftline_engine_info{")
        ]
    assert line.endswith("} 1.0")
    for name, value in (expected | {"numerics": "tolerance", "model_name": "fake"}).items():
        assert f'{name}="{value}"' in line
    with serving(FakeEngine(), is_loading=True) as server:
        assert set(server.client.get("/version").json()) == {"version"}
        assert "draftline_engine_info" not in server.client.get("/metrics").text


def test_version_and_docs(server: RunningServer) -> None:
    assert server.client.get("/version").json()["version"]
    assert "swagger" in server.client.get("/docs").text
    paths = server.client.get("/openapi.json").json()["paths"]
    schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "stop", "seed"} <= schema["properties"].keys()


def test_openapi_says_what_operations_take_and_answer(server: RunningServer) -> None:
    api = server.client.get("/openapi.json").json()
    assert api["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            assert operation["security"] == [{"bearer": []}, {}]
            assert {"200", "401", "404", "500", "503"} <= operation["responses"].keys(), (path, method)
            assert ("400" in operation["responses"]) is (method == "post")
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            assert len(names) == path.count("{")
            assert all(f"{{{name}" in path for name in names)
    metrics = api["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert "text/plain" in metrics
    streamed = api["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    assert "text/event-stream" in streamed


BOUNDS = [
    (name, bound, step)
    for name, bounds in RANGES.items()
    for bound, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1))
    if bound in bounds
]


@pytest.mark.parametrize(("name", "bound", "step"), BOUNDS)
def test_the_ranges_in_docs_are_those_that_hold(
    server: RunningServer, name: str, bound: str, step: int
) -> None:
    """The bound itself is taken, unless it is excluded, and what lies beyond is refused."""
    limit = RANGES[name][bound]
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
    is_completion = name in ("best_of", "logprobs")
    path, base = ("/v1/completions", {"prompt": "x"}) if is_completion else ("/v1/chat/completions", chat)
    if name == "dimensions":
        path, base = "/v1/embeddings", {"input": "x"}
    beyond = limit + step if step else limit
    assert server.client.post(path, json={**base, name: beyond}).status_code == 400
    if step and name not in ("max_tokens", "max_completion_tokens"):
        assert server.client.post(path, json={**base, name: limit}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)]
)
def test_the_routers_errors_have_openais_shape(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "x-request-id" in response.headers


def test_histograms_count_every_choice_and_resolve_milliseconds() -> None:
    with serving(FakeEngine(lambda _: say("hello", cached=1))) as server:
        for stream in (True, False):
            server.client.post("/v1/completions", json={"prompt": "ab", "n": 3, "stream": stream})
        server.client.post("/v1/completions", json={"prompt": "ab", "model": "made-up"})
        server.client.get("/made/up")
        metrics = server.client.get("/metrics").text
    label = '{model_name="fake"}'
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert sample(metrics, f"draftline_{name}_seconds_count{label}") == 6
    assert sample(metrics, f"draftline_inter_token_latency_seconds_count{label}") == 6 * 4
    assert sample(metrics, f"draftline_inter_token_latency_seconds_sum{label}") > 0
    success = 'draftline_request_success_total{finished_reason="length",model_name="fake"}'
    assert sample(metrics, success) == 6
    assert sample(metrics, f"draftline_prefix_cache_hits_total{label}") == 6
    assert sample(metrics, f"draftline_prompt_tokens_total{label}") == 12
    buckets = [
        line for line in metrics.splitlines() if line.startswith("draftline_time_to_first_token_seconds_b")
    ]
    assert 'le="0.001"' in buckets[0]
    assert float(buckets[-1].rpartition(" ")[2]) == 6
    assert "made" not in metrics
    assert sample(metrics, 'draftline_http_responses_total{endpoint="other",status="404"}') == 1


def test_metrics_names_are_complete(server: RunningServer) -> None:
    metrics = server.client.get("/metrics").text
    for name in (
        *(
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "prefix_cache_queries_total",
        ),
        *("prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total"),
        *("generation_tokens_total", "request_success_total", "requests_disconnected_total"),
    ):
        assert f"\ndraftline_{name}{{" in metrics


def test_openmetrics_is_served_to_those_who_ask(server: RunningServer) -> None:
    headers = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = server.client.get("/metrics", headers=headers)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_one_log_line_a_request_without_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.access")
    with serving(FakeEngine(lambda _: say("hello", cached=1))) as server:
        for stream in (True, False):
            body = {"prompt": "a secret prompt", "stream": stream}
            headers = {"x-request-id": f"id-{stream}"}
            server.client.post("/v1/completions", json=body, headers=headers)
        server.client.get("/health")
        server.client.get("/a%0Ab")
    records = [record for record in caplog.records if record.name == "server.access"]
    assert len(records) == 3  # probes are no news
    streamed = json.loads(JsonFormatter().format(records[0]))
    assert streamed["seconds"] > 0
    assert {key: streamed[key] for key in ("id", "method", "path", "status")} == {
        "id": "id-True",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
    }
    assert (streamed["prompt_tokens"], streamed["completion_tokens"], streamed["cached_tokens"]) == (15, 5, 1)
    text = TextFormatter().format(records[1])
    assert "id-False POST /v1/completions 200 " in text
    assert text.endswith("s prompt=15 completion=5 cached=1")
    assert "/a%0Ab 404" in TextFormatter().format(records[2])
    assert "secret" not in caplog.text


def test_cors_is_off_by_default_and_on_for_named_origins(server: RunningServer) -> None:
    headers = {"origin": "https://page.example"}
    assert "access-control-allow-origin" not in server.client.get("/version", headers=headers).headers
    with serving(FakeEngine(), cors_origins=["https://page.example"], keys=["some-long-key"]) as open_server:
        refused = open_server.client.get("/version", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        preflight = {
            **headers,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        assert open_server.client.options("/v1/completions", headers=preflight).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/fake", "/docs"]
)
def test_head_is_get_without_the_body(server: RunningServer, path: str) -> None:
    whole, head = server.client.get(path), server.client.head(path)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # which counts these very requests
        assert head.headers["content-length"] == str(len(whole.content))
    assert server.client.head("/v1/completions").status_code == 405
