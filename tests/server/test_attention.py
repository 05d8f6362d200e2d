"""/v1/attention through HTTP: on a small real model, its limits, its turns, and what ends it."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError
from engine.loading.attention import load_attention_model
from server.loading import load_served_model
from server.settings import ServeSettings
from tests.drafters import byte_checkpoint
from tests.engine.test_pair import PAIR
from tests.fakes import FakeEngine
from tests.server.harness import RunningServer, served_model, serving

PATH, TEXT = "/v1/attention", "the sea is wide"


class HeldAttention:
    """Two layers of one head that looks at everything alike, once the test lets it."""

    num_layers, num_heads, num_bytes = 2, 1, 0

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.has_begun = threading.Event()
        self.num_cancelled = 0

    def attention(self, token_ids: Sequence[int], layer: int, cancellation: Cancellation) -> bytes:
        self.has_begun.set()
        while not self.may_end.wait(0.01):
            if cancellation.is_cancelled:
                self.num_cancelled += 1
                raise CancelledError
        n = len(token_ids)
        return (np.tril(np.ones((1, n, n))) / np.arange(1, n + 1)[:, None]).astype("<f4").tobytes()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    engine = FakeEngine()
    with serving(engine, is_loading=True) as running:
        attention = load_attention_model(byte_checkpoint())
        running.state.publish(replace(served_model(engine), attention=attention))
        yield running


def post(server: RunningServer, **body: Any) -> httpx.Response:
    return server.client.post(PATH, json={"prompt": TEXT, **body})


def test_it_says_what_each_token_looks_at(server: RunningServer) -> None:
    reply = post(server, layer=1).json()
    assert (reply["object"], reply["model"], reply["layer"]) == ("draftline.attention", "fake", 1)
    assert [token["text"] for token in reply["tokens"]] == list(TEXT)
    assert [token["token_id"] for token in reply["tokens"]] == list(TEXT.encode())
    model = load_attention_model(byte_checkpoint())
    assert (reply["num_layers"], reply["num_heads"]) == (model.num_layers, model.num_heads)
    content = model.attention(list(TEXT.encode()), 1, Cancellation())
    expected = np.frombuffer(content, "<f4").reshape(model.num_heads, len(TEXT), len(TEXT))
    assert len(reply["attention"]) == model.num_heads
    for head, rows in zip(expected, reply["attention"], strict=True):
        assert [len(row) for row in rows] == list(range(1, len(TEXT) + 1))
        for place, row in enumerate(rows):
            assert row == [round(float(value), 5) for value in head[place, : place + 1]]
            assert sum(row) == pytest.approx(1.0, abs=1e-3)


def test_layers_differ_and_the_first_is_the_default(server: RunningServer) -> None:
    first, default, second = post(server, layer=0).json(), post(server).json(), post(server, layer=1).json()
    assert first == default
    assert first["attention"] != second["attention"]
    assert post(server, prompt=list(TEXT.encode())).json() == default


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": "x" * 129}, "prompt", "prompt has 129 tokens, the limit of /v1/attention is 128"),
        ({"prompt": [1] * 129}, "prompt", "prompt has 129 tokens"),
        ({"prompt": [300]}, "prompt", "token ids must be between 0 and 258, got 300"),
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"layer": 2}, "layer", "layer must be between 0 and 1, got 2"),
        ({"layer": -1}, "layer", "layer must be between 0 and 1, got -1"),
        ({"layer": 10**30}, "layer", "a far larger number"),
        ({"layer": "0"}, "layer", "must be an integer"),
        ({"layer": True}, "layer", "must be an integer"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(
    server: RunningServer, body: dict[str, Any], param: str, message: str
) -> None:
    response = post(server, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


def test_the_longest_prompt_and_unknown_fields(server: RunningServer) -> None:
    reply = post(server, prompt="x" * 128, temperature=1)
    assert len(reply.json()["attention"][0][127]) == 128
    assert [warning["param"] for warning in reply.json()["warnings"]] == ["temperature"]


def test_without_the_flag_it_is_a_404_that_names_it() -> None:
    with serving(FakeEngine()) as server:
        response = post(server)
        assert response.status_code == 404
        assert "--enable-attention" in response.json()["error"]["message"]


def test_one_is_computed_at_a_time_a_few_wait_and_more_are_refused() -> None:
    engine, attention = FakeEngine(), HeldAttention()
    with serving(engine, is_loading=True) as server, ThreadPoolExecutor(8) as pool:
        server.state.publish(replace(served_model(engine), attention=attention))
        first = pool.submit(post, server)
        assert attention.has_begun.wait(10)
        waiting = [pool.submit(post, server) for _ in range(4)]
        while len(server.client.get("/v1/requests").json()["data"]) < 5:
            pass
        refused = post(server)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "attention" in refused.json()["error"]["message"]
        states = [one["state"] for one in server.client.get("/v1/requests").json()["data"]]
        assert states == ["running"] + ["queued"] * 4
        assert server.client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
        attention.may_end.set()
        assert [one.result().status_code for one in (first, *waiting)] == [200] * 5
        assert first.result().json()["attention"][0][3] == [0.25] * 4


def test_a_client_that_leaves_or_is_ended_frees_the_turn() -> None:
    engine, attention = FakeEngine(), HeldAttention()
    with serving(engine, is_loading=True) as server, ThreadPoolExecutor(2) as pool:
        server.state.publish(replace(served_model(engine), attention=attention))
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(PATH, json={"prompt": TEXT}, timeout=0.3)
        attention.has_begun.clear()
        headers = {"x-request-id": "mine"}
        ended = pool.submit(server.client.post, PATH, json={"prompt": TEXT}, headers=headers)
        assert attention.has_begun.wait(10), "the turn is free again"
        assert server.client.delete("/v1/requests/mine").status_code == 200
        assert ended.result().status_code == 499
        attention.may_end.set()
        assert post(server).status_code == 200
        assert attention.num_cancelled == 2


@pytest.mark.parametrize("is_enabled", [False, True])
def test_the_flag_loads_the_weights_a_second_time(is_enabled: bool) -> None:
    settings = ServeSettings(model=str(PAIR / "target"), enable_attention=is_enabled, kv_cache_memory=2**24)
    model = load_served_model(settings)
    model.engine.close()
    assert (model.attention is not None) is is_enabled
    assert model.attention is None or model.attention.num_bytes > 1_000_000
