"""Requests as things: seen, cancelled, ended by a deadline or by waiting too long; each key its own."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine.interface.outputs import FinishReason
from engine.interface.pooling import Pooling
from server.serving import EmbeddingModel
from tests.fakes import FakeEngine, Script, say
from tests.server.harness import RunningServer, serving

ALICE, BOB = {"x-api-key": "key-of-alice"}, {"x-api-key": "key-of-bob"}
KEYS = ["key-of-alice", "key-of-bob"]
COMPLETION = {"prompt": "abcd", "max_tokens": 50}
EMBEDDING = EmbeddingModel(pooling=Pooling.MEAN, hidden_size=4)


def post(server: RunningServer, path: str = "/v1/completions", **options: Any) -> httpx.Response:
    options.setdefault("json", COMPLETION)
    return server.client.post(path, **options)


def listed(server: RunningServer, headers: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.client.get("/v1/requests", headers=headers).json()["data"]
    return found


def test_a_key_sees_its_own_requests_and_how_far_they_are() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine, keys=KEYS) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, server, headers={**ALICE, "x-request-id": "mine-1"})
        engine.wait_until(lambda: engine.num_open == 1)
        engine.step(2)
        others = []
        for number, headers in enumerate((BOB, ALICE), 2):
            others.append(pool.submit(post, server, headers={**headers, "x-request-id": f"mine-{number}"}))
            engine.wait_until(lambda number=number: engine.num_open == number)  # type: ignore[misc]
        while listed(server, ALICE)[0]["state"] != "running":
            time.sleep(0.005)
        running, queued = listed(server, ALICE)
        assert (running["id"], running["position"], running["completion_tokens"]) == ("mine-1", None, 2)
        assert running["prompt_tokens"] == 4
        assert running["endpoint"] == "/v1/completions"
        assert (queued["id"], queued["state"], queued["position"]) == ("mine-3", "queued", 1), (
            "bob's is before"
        )
        assert queued["age"] >= 0.0
        [other] = listed(server, BOB)
        assert (other["id"], other["position"]) == ("mine-2", 0)
        engine.release()
        assert {future.result().status_code for future in (first, *others)} == {200}
        while listed(server, ALICE) or listed(server, BOB):
            time.sleep(0.005)


def test_a_request_is_cancelled_by_its_own_key_only() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine, keys=KEYS) as server, ThreadPoolExecutor(4) as pool:
        whole = pool.submit(post, server, headers={**ALICE, "x-request-id": "whole"})
        engine.wait_until(lambda: engine.num_open == 1)
        for headers, name in ((BOB, "whole"), (ALICE, "other")):
            missing = server.client.delete(f"/v1/requests/{name}", headers=headers)
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "request_not_found"
        assert engine.num_open == 1
        answer = server.client.delete("/v1/requests/whole", headers=ALICE)
        assert answer.json() == {"id": "whole", "object": "request", "cancelled": True}
        cancelled = whole.result()
        assert cancelled.status_code == 499
        assert cancelled.json()["error"]["code"] == "request_cancelled"
        assert engine.num_open == 0


def test_a_stream_that_is_cancelled_says_so_after_its_tokens() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine) as server:
        engine.when_open(1, lambda: engine.step(2))
        body = {**COMPLETION, "stream": True}
        headers = {"x-request-id": "stream"}
        with server.client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            lines = response.iter_lines()
            assert any('"he"' in line for line in lines)
            assert server.client.delete("/v1/requests/stream").status_code == 200
            *_, last = (line for line in lines if line)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_cancelled"
        assert engine.num_open == 0
        assert server.client.get("/v1/requests").json()["data"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", COMPLETION),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/v1/distribution", {"prompt": "x"}),
    ],
)
def test_a_deadline_ends_an_answer_of_every_kind(path: str, body: dict[str, object]) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    with serving(engine, embedding=EMBEDDING) as server:
        assert post(server, path, json={**body, "deadline_ms": 60_000}).status_code == 200
        engine.hold()
        late = post(server, path, json={**body, "deadline_ms": 50})
        assert late.status_code == 504
        error = late.json()["error"]
        assert "not complete after 50 ms, which is deadline_ms" in error["message"]
        assert engine.num_open == 0
        engine.release()
        assert post(server, path, json=body).status_code == 200


def test_a_request_that_waited_too_long_is_a_503_that_says_when_to_come_back() -> None:
    engine = FakeEngine(lambda _: Script(steps=((),), finish_reason=FinishReason.TIMEOUT))
    engine.pooled_script = engine.script
    with serving(engine, embedding=EMBEDDING) as server:
        for path, body in (("/v1/completions", COMPLETION), ("/v1/embeddings", {"input": "a"})):
            late = post(server, path, json={**body, "max_queue_ms": 20})
            assert late.status_code == 503
            assert late.json()["error"]["code"] == "queue_timeout"
            assert int(late.headers["retry-after"]) >= 1
        assert 'finished_reason="timeout",model_name="fake"} 1.0' in server.client.get("/metrics").text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("deadline_ms", 0, "deadline_ms must be at least 1, got 0"),
        ("deadline_ms", 86_400_001, "deadline_ms must be at most 86400000, got 86400001"),
        ("deadline_ms", "5", "deadline_ms must be an integer"),
        ("max_queue_ms", -1, "max_queue_ms must be at least 1, got -1"),
        ("priority", 1001, "priority must be at most 1000, got 1001"),
        ("priority", -1001, "priority must be at least -1000, got -1001"),
    ],
)
def test_what_scheduling_fields_may_not_be(name: str, value: object, message: str) -> None:
    with serving(FakeEngine()) as server:
        refused = post(server, json={**COMPLETION, name: value})
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] == name
