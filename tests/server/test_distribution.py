"""The whole next-token distribution through HTTP: on a small real model, and its way through the queue."""

import base64
import math
import struct
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.interface.config import EngineConfig
from engine.loading.loader import load_engine
from server.serving import ServedModel
from server.text import Tokenizer
from tests.drafters import byte_checkpoint
from tests.fakes import FakeEngine, say
from tests.server.harness import serving, serving_model

PATH, TEXT = "/v1/distribution", "the sea is wide and the boat is small"


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    checkpoint = byte_checkpoint()
    engine = load_engine(checkpoint, EngineConfig(device="cpu", dtype="float32", kv_cache_memory=2**24))
    tokenizer = Tokenizer(checkpoint.tokenizer)
    model = ServedModel(
        name="tiny", engine=engine, tokenizer=tokenizer, chat_template=None, max_token_bytes=13
    )
    with serving_model(model) as client:
        yield client
    engine.close()


def ask(api: httpx.Client, **body: Any) -> dict[str, Any]:
    response = api.post(PATH, json={"prompt": TEXT, **body})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def numbers(reply: dict[str, Any]) -> tuple[float, ...]:
    return struct.unpack(f"<{reply['vocab_size']}f", base64.b64decode(reply["logprobs"]))


def test_it_is_the_distribution_that_logprobs_show_a_part_of(api: httpx.Client) -> None:
    reply = ask(api)
    values = numbers(reply)
    assert (reply["object"], reply["model"]) == ("draftline.distribution", "tiny")
    assert math.fsum(map(math.exp, values)) == pytest.approx(1.0, abs=1e-5)
    body = {"prompt": TEXT, "max_tokens": 1, "logprobs": 100, "temperature": 0}
    [choice] = api.post("/v1/completions", json={**body, "return_token_ids": True}).json()["choices"]
    [top] = choice["logprobs"]["top_logprobs"]
    shown = {token: logprob for token, logprob in top.items() if len(token) == 1 and ord(token) < 128}
    assert len(shown) > 20
    assert {token: values[ord(token)] for token in shown} == shown
    assert values.index(max(values)) == choice["token_ids"][0]


def test_the_likeliest_tokens_come_with_their_texts_in_order(api: httpx.Client) -> None:
    reply = ask(api, top_logprobs=100)
    values = numbers(reply)
    order = sorted(range(len(values)), key=lambda token_id: (-values[token_id], token_id))[:100]
    assert [entry["token_id"] for entry in reply["top_logprobs"]] == order
    assert [entry["logprob"] for entry in reply["top_logprobs"]] == [values[token_id] for token_id in order]
    plain = [entry for entry in reply["top_logprobs"] if entry["token_id"] < 128]
    assert [entry["token"] for entry in plain] == [chr(entry["token_id"]) for entry in plain]
    assert [entry["bytes"] for entry in plain] == [[entry["token_id"]] for entry in plain]
    assert ask(api)["top_logprobs"] == []


@pytest.mark.parametrize("count", [-1, 101])
def test_more_likeliest_tokens_than_100_are_refused(api: httpx.Client, count: int) -> None:
    response = api.post(PATH, json={"prompt": TEXT, "top_logprobs": count})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "top_logprobs"


def test_usage_counts_the_prompt_and_what_of_it_was_cached(api: httpx.Client) -> None:
    cold, warm = (ask(api, cache_salt="of this test") for _ in range(2))
    assert cold["logprobs"] == warm["logprobs"]
    assert cold["usage"]["prompt_tokens"] == len(TEXT)
    assert cold["usage"]["completion_tokens"] == 1
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in (cold, warm)]
    assert cached == [0, len(TEXT) - 1]


def test_it_is_the_same_beside_others_and_for_token_ids(api: httpx.Client) -> None:
    expected = ask(api)["logprobs"]
    body = {"prompt": ["the sun", "a boat", TEXT], "max_tokens": 60, "ignore_eos": True}
    others = [
        threading.Thread(target=api.post, args=("/v1/completions",), kwargs={"json": body}) for _ in range(3)
    ]
    for other in others:
        other.start()
    found = {ask(api, prompt=list(TEXT.encode()), cache_salt=str(i))["logprobs"] for i in range(6)}
    for other in others:
        other.join()
    assert found == {expected}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": None}, "prompt", "prompt is required"),
        ({"prompt": ["a", "b"]}, "prompt[0]", "must be a token id"),
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": [1] * 512}, "prompt", "maximum context length is 512 tokens; the prompt has 512"),
        ({"prompt": [300]}, "prompt", "token ids must be between 0 and"),
        ({"cache_salt": 3}, "cache_salt", "must be a string"),
        ({"priority": 5000}, "priority", "must be at most 1000"),
    ],
)
def test_what_has_no_distribution_is_refused_by_name(
    api: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    response = api.post(PATH, json={"prompt": TEXT, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert message in response.json()["error"]["message"]


def test_parameters_of_sampling_have_no_effect_and_say_so(api: httpx.Client) -> None:
    reply = ask(api, temperature=0.5, logit_bias={"5": 3})
    assert [warning["param"] for warning in reply["warnings"]] == ["logit_bias", "temperature"]
    assert reply["logprobs"] == ask(api)["logprobs"]


def test_it_waits_in_the_queue_and_is_aborted_when_its_client_leaves() -> None:
    engine = FakeEngine(lambda _: say("a"))
    engine.hold()
    with serving(engine, max_open=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(PATH, json={"prompt": "x"}, timeout=0.3)
        engine.wait_until(lambda: engine.num_aborted == 1)
        engine.when_open(1, engine.step)
        assert server.client.post(PATH, json={"prompt": "x"}).status_code == 200
        metrics = server.client.get("/metrics").text
    assert 'finished_reason="length",model_name="fake"} 1.0' in metrics
    assert 'finished_reason="abort",model_name="fake"} 1.0' in metrics
