"""POST /v1/embeddings: vectors, their form, limits, long lists, and the openai SDK."""

import base64
import math
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai
import pytest

from engine.interface.outputs import FinishReason, GenerationRequest
from engine.interface.pooling import Pooling
from engine.interface.speculation import SpeculationMode
from server.serving import EmbeddingModel
from tests.fakes import EOS, FakeEngine, Script, fake_embedding
from tests.server.harness import RunningServer, serving

MATRYOSHKA = EmbeddingModel(pooling=Pooling.MEAN, hidden_size=4, suffix_token_id=EOS, is_matryoshka=True)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


def embed(server: RunningServer, texts: object, **fields: object) -> httpx.Response:
    return server.client.post("/v1/embeddings", json={"input": texts, **fields})


def expected(request: GenerationRequest, dimensions: int = 4) -> list[float]:
    values = struct.unpack("<4f", fake_embedding(request) or b"")[:dimensions]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def error_of(reply: httpx.Response) -> tuple[int, str, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["code"], error["message"]


def test_a_text_is_a_vector_of_length_1(server: RunningServer) -> None:
    reply = embed(server, "hello").json()
    [request] = server.engine.requests
    assert request.prompt_token_ids == tuple(b"hello")
    assert (request.params.pooling, request.params.max_tokens) == (Pooling.LAST, 0)
    assert request.speculation.mode is SpeculationMode.OFF
    [item] = reply.pop("data")
    assert item.pop("embedding") == pytest.approx(expected(request), abs=6e-8)
    assert item == {"object": "embedding", "index": 0}
    assert reply == {
        "object": "list",
        "model": "fake",
        "usage": {"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}},
    }


@pytest.mark.parametrize(
    ("texts", "token_ids"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([97, 98], [(97, 98)]),
        ([[97, 98], [1]], [(97, 98), (1,)]),
        (["ab", [7]], [(97, 98), (7,)]),
    ],
)
def test_every_form_of_input(server: RunningServer, texts: object, token_ids: list[tuple[int, ...]]) -> None:
    reply = embed(server, texts).json()
    assert [request.prompt_token_ids for request in server.engine.requests] == token_ids
    assert [item["index"] for item in reply["data"]] == list(range(len(token_ids)))


def test_base64_holds_the_same_float32_values(server: RunningServer) -> None:
    numbers, encoded = (
        embed(server, ["hello", "you"], encoding_format=form).json()["data"] for form in ("float", "base64")
    )
    for number, code in zip(numbers, encoded, strict=True):
        values = struct.unpack("<4f", base64.b64decode(code["embedding"]))
        rounded = struct.unpack("<4f", struct.pack("<4f", *number["embedding"]))
        assert rounded == values  # nine digits name one float32 and no other


def test_fewer_dimensions_are_normalised_anew_and_warned_about(server: RunningServer) -> None:
    reply = embed(server, "hello", dimensions=3).json()
    assert reply["data"][0]["embedding"] == pytest.approx(expected(server.engine.requests[0], 3), abs=6e-8)
    [warning] = reply["warnings"]
    assert (warning["param"], "first 3 values" in warning["message"]) == ("dimensions", True)
    strict = server.client.post(
        "/v1/embeddings", json={"input": "x", "dimensions": 3}, headers={"x-strict": "1"}
    )
    assert error_of(strict)[:3] == (400, "dimensions", "strict")
    assert "warnings" not in embed(server, "hello", dimensions=4).json()


def test_what_the_checkpoint_says_of_its_embeddings() -> None:
    with serving(FakeEngine(), embedding=MATRYOSHKA) as server:
        reply = embed(server, ["ab", [1, 2]], dimensions=2).json()
        assert "warnings" not in reply
        text, ids = server.engine.requests
        assert (text.prompt_token_ids, ids.prompt_token_ids) == ((97, 98, EOS), (1, 2))
        assert text.params.pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"input": ""}, "input", "invalid_value", "input must not be empty"),
        ({"input": []}, "input", "invalid_value", "input must not be empty"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value", "input[1] must not be empty"),
        ({"input": [[1], [259]]}, "input[1]", "invalid_value", "between 0 and 258, got 259"),
        ({"input": 5}, "input", "invalid_value", "input must be a string, a list of strings or token ids"),
        ({}, "input", "invalid_value", "input is required"),
        ({"input": ["x"] * 2049}, "input", "invalid_value", "2049 texts, the limit is 2048"),
        ({"input": "x", "dimensions": 0}, "dimensions", "invalid_value", "between 1 and 4"),
        ({"input": "x", "dimensions": 5}, "dimensions", "invalid_value", "hidden size, got 5"),
        (
            {"input": "x", "encoding_format": "int8"},
            "encoding_format",
            "invalid_value",
            "'float' or 'base64'",
        ),
        ({"input": "x", "model": "other"}, "model", "model_not_found", '"other" does not exist'),
        (
            {"input": ["x", "y" * 4097]},
            "input[1]",
            "context_length_exceeded",
            "maximum context length is 4096 tokens; input[1] has 4097",
        ),
    ],
)
def test_what_is_refused(
    server: RunningServer, fields: dict[str, object], param: str, code: str, message: str
) -> None:
    reply = server.client.post("/v1/embeddings", json=fields)
    assert error_of(reply)[1:3] == (param, code)
    assert message in error_of(reply)[3]
    assert server.engine.requests == []


def test_a_reply_that_would_be_too_large_is_refused() -> None:
    wide = EmbeddingModel(pooling=Pooling.LAST, hidden_size=4096)
    with serving(FakeEngine(), embedding=wide) as server:
        status, param, _, message = error_of(embed(server, ["x"] * 1025))
        assert (status, param) == (400, "input")
        assert "1025 texts of 4096 values each" in message


def test_a_long_list_leaves_room_in_the_queue_for_others() -> None:
    open_at_once: list[int] = []
    engine = FakeEngine(max_open=40)
    engine.pooled_script = lambda _: open_at_once.append(engine.num_open + 1) or Script(steps=((),))  # type: ignore[func-returns-value]
    with serving(engine, max_open=40) as server:
        server.engine.hold()
        replies: list[httpx.Response] = []
        texts = [[number] for number in range(90)]
        thread = threading.Thread(target=lambda: replies.append(embed(server, texts)))
        thread.start()
        server.engine.wait_until(lambda: server.engine.num_open == 20)
        server.engine.release()
        thread.join(20)
    assert max(open_at_once) == 20
    assert [item["index"] for item in replies[0].json()["data"]] == list(range(90))
    assert sorted(request.prompt_token_ids for request in engine.requests) == [(n,) for n in range(90)]


def test_a_list_that_finds_the_queue_full_is_refused_at_once_or_waits_in_the_middle() -> None:
    with serving(FakeEngine(max_open=8), max_open=8) as server:
        assert len(embed(server, ["x"] * 30).json()["data"]) == 30  # windows of 2, two at a time
        server.engine.max_open = 1
        status, _, code, _ = error_of(embed(server, ["x"] * 30))
        assert (status, code) == (429, "rate_limit_exceeded")
        server.engine.max_open = 2  # one window fits, the other worker waits for its end
        assert len(embed(server, ["x"] * 30).json()["data"]) == 30


def test_values_that_are_not_finite_are_an_error_that_names_the_text() -> None:
    def script(request: GenerationRequest) -> Script:
        is_broken = request.prompt_token_ids == (7,)
        return Script(steps=((),), finish_reason=FinishReason.ERROR if is_broken else FinishReason.LENGTH)

    with serving(FakeEngine()) as server:
        server.engine.pooled_script = script
        status, _, code, message = error_of(embed(server, [[5], [7], [9]]))
        assert (status, code) == (500, "non_finite")
        assert "input[1]" in message
        assert server.engine.num_open == 0


def test_a_client_that_leaves_frees_its_texts() -> None:
    with serving(FakeEngine()) as server:
        server.engine.hold()
        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/v1/embeddings", json={"input": ["x"] * 100}, timeout=0.3)
        server.engine.wait_until(lambda: server.engine.num_open == 0)
        server.engine.release()
        time.sleep(0.1)
        assert len(server.engine.requests) == 64  # two windows: the rest was never submitted


def test_tenants_never_share_a_prefix() -> None:
    with serving(FakeEngine(), keys=["first-key", "second-key"]) as server:
        for key, salt in (("first-key", None), ("second-key", None), ("first-key", "s")):
            fields = {"input": "x"} | ({} if salt is None else {"cache_salt": salt})
            headers = {"authorization": f"Bearer {key}"}
            assert server.client.post("/v1/embeddings", json=fields, headers=headers).status_code == 200
        assert len({request.cache_salt for request in server.engine.requests}) == 3


def test_unknown_fields_are_warned_about(server: RunningServer) -> None:
    reply = embed(server, "x", truncate=True, user="me").json()
    assert [warning["param"] for warning in reply["warnings"]] == ["truncate"]


def test_a_model_without_embeddings_says_why() -> None:
    with serving(FakeEngine()) as server:
        model = server.state.loaded_model()
        server.state.model = replace(model, embedding=None, why_no_embeddings="it needs a Dense")
        assert error_of(embed(server, "x")) == (400, "model", "unsupported_parameter", "it needs a Dense")


def test_metrics_count_texts(server: RunningServer) -> None:
    embed(server, ["x", "y", "z"])
    text = server.client.get("/metrics").text
    assert 'draftline_request_success_total{finished_reason="length",model_name="fake"} 3.0' in text
    assert 'draftline_time_to_first_token_seconds_count{model_name="fake"} 0.0' in text


def test_the_openai_sdk(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        reply = client.embeddings.create(model="fake", input=["hello", "you"])
        assert [len(item.embedding) for item in reply.data] == [4, 4]
        assert reply.data[1].embedding == pytest.approx(expected(server.engine.requests[1]), abs=1e-7)
        assert reply.usage.total_tokens == 8
        as_numbers = client.embeddings.create(model="fake", input="hello", encoding_format="float")
        assert as_numbers.data[0].embedding == pytest.approx(reply.data[0].embedding, abs=6e-8)
