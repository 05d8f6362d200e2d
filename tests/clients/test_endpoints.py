"""The endpoints beside completions and chat, as the contract has them; both clients against a real socket."""

import base64
import struct
from array import array
from email.utils import formatdate
from typing import Any

import pytest
from draftline_client import (
    CacheEnd,
    CacheExplanation,
    InternalServerError,
    PromptToken,
    ProtocolError,
    ProvenanceSummary,
    ServiceUnavailableError,
    TokenProvenance,
)

USAGE = {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
EXPLANATION = {
    "prompt_tokens": 120,
    "cached_tokens": 96,
    "block_size": 16,
    "end": {
        "reason": "different_token",
        "position": 96,
        "cached": {"token_id": 12, "text": " cat"},
        "prompt": {"token_id": 15, "text": " dog"},
    },
}
END = CacheEnd(
    reason="different_token",
    position=96,
    cached=PromptToken(token_id=12, text=" cat"),
    prompt=PromptToken(token_id=15, text=" dog"),
)
HELLO = [{"role": "user", "content": "Hello"}]


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def completion(**usage: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": "a", "finish_reason": "stop", "seed": 5}
    return {"id": "c", "created": 1, "model": "m", "choices": [choice], "usage": {**USAGE, **usage}}


def test_a_lookup_of_the_cache(server: Any, client: Any) -> None:
    reply = {"object": "draftline.cache_lookup", "model": "m", **EXPLANATION}
    short = {**reply, "end": {"reason": "end_of_prompt", "position": 96}}
    server.then(server.json(reply), server.json(short))
    found = client.cache.lookup(prompt=[1, 2], cache_salt="s")
    assert (found.model, found.prompt_tokens, found.cached_tokens, found.block_size) == ("m", 120, 96, 16)
    assert (found.end, found.request_id, found.extra) == (END, "req-7", {})
    tools = [{"type": "function", "function": {"name": "f"}}]
    end = client.cache.lookup(messages=HELLO, tools=tools, chat_template_kwargs={"a": 1}).end
    assert end == CacheEnd(reason="end_of_prompt", position=96)
    assert [(request.path, request.body) for request in server.requests] == [
        ("/v1/cache/lookup", {"prompt": [1, 2], "cache_salt": "s"}),
        ("/v1/cache/lookup", {"messages": HELLO, "tools": tools, "chat_template_kwargs": {"a": 1}}),
    ]
    for subject in ({}, {"prompt": "p", "messages": HELLO}):
        with pytest.raises(TypeError, match="either prompt or messages"):
            client.cache.lookup(**subject)


def test_what_the_cache_had_is_in_usage(server: Any, client: Any) -> None:
    one = completion(draftline={"speculation": None, "cache": EXPLANATION})
    several = completion(draftline={"cache": [EXPLANATION, EXPLANATION]})
    server.then(server.json(one), server.json(several), server.json(completion()))
    explanation = CacheExplanation(prompt_tokens=120, cached_tokens=96, block_size=16, end=END)
    counts = [client.completions.create(prompt="p", cache_explain=True).usage.cache for _ in range(3)]
    assert counts == [(explanation,), (explanation,) * 2, ()]
    assert server.requests[0].body == {"prompt": "p", "cache_explain": True}


def test_a_distribution(server: Any, client: Any) -> None:
    logprobs = packed(-1.5, -0.25, -0.25, float("-inf"))
    reply = {"model": "m", "vocab_size": 4, "logprobs": logprobs, "usage": USAGE}
    server.then(server.json(reply))
    found = client.distribution(prompt="p")
    assert found.logprobs == array("f", [-1.5, -0.25, -0.25, float("-inf")])
    assert (found.vocab_size, len(found.logprobs), found.usage.prompt_tokens) == (4, 4, 3)
    assert found.top(3) == ((1, -0.25), (2, -0.25), (0, -1.5))
    assert found.top(9)[3] == (3, float("-inf"))
    assert found.top(0) == ()
    (request,) = server.requests
    assert (request.path, request.body) == ("/v1/distribution", {"prompt": "p"})


def test_attention(server: Any, client: Any) -> None:
    tokens = [{"token_id": 5, "text": "The"}, {"token_id": 6, "text": " sea"}]
    reply = {
        "model": "m",
        "num_layers": 30,
        "num_heads": 2,
        "layer": 3,
        "tokens": tokens,
        "attention": [[[1], [0.25, 0.75]], [[1.0], [0.5, 0.5]]],
    }
    server.then(server.json(reply))
    found = client.attention(prompt=[5, 6], layer=3)
    assert (found.num_layers, found.num_heads, found.layer) == (30, 2, 3)
    assert found.tokens[1] == PromptToken(token_id=6, text=" sea")
    assert found.attention == (((1,), (0.25, 0.75)), ((1.0,), (0.5, 0.5)))
    assert server.requests[0].body == {"prompt": [5, 6], "layer": 3}


@pytest.mark.parametrize(
    "attention", [None, [1], [[1]], [[["x"]]], [[[None]]], {"a": 1}], ids=lambda value: str(value)
)
def test_attention_of_another_shape_is_refused_by_name(server: Any, client: Any, attention: object) -> None:
    reply = {"model": "m", "num_layers": 1, "num_heads": 1, "layer": 0, "tokens": [], "attention": attention}
    server.then(server.json(reply))
    with pytest.raises(ProtocolError, match="at attention"):
        client.attention(prompt="p")


@pytest.mark.parametrize("values", ["AAAA", "A", "ü", "AAA!AAA==", [1, "x"], [10**400], 5, None])
def test_a_vector_that_is_none_is_refused_by_name(server: Any, client: Any, values: object) -> None:
    server.then(server.json({"model": "m", "vocab_size": 1, "logprobs": values, "usage": USAGE}))
    with pytest.raises(ProtocolError, match="at logprobs"):
        client.distribution(prompt="p")


def test_embeddings_come_as_base64_or_numbers(server: Any, client: Any) -> None:
    def reply(*vectors: object) -> dict[str, Any]:
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": 2, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
        return {"object": "list", "data": data, "model": "m", "usage": usage}

    server.then(server.json(reply(packed(0.6, 0.8), packed(1.0, 0.0))), server.json(reply([0.6, 0.8])))
    found = client.embeddings.create(input=["a", "b"], dimensions=2)
    assert [each.index for each in found] == [0, 1]
    assert len(found) == 2
    assert found.data[0].embedding == array("f", [0.6, 0.8])
    assert bytes(memoryview(found.data[1].embedding)) == struct.pack("=2f", 1.0, 0.0)
    assert found.usage.prompt_tokens_details.cached_tokens == 1
    again = client.embeddings.create(input=[[1, 2]], encoding_format="float")
    assert again.data[0] == found.data[0]
    assert [request.body for request in server.requests] == [
        {"input": ["a", "b"], "dimensions": 2, "encoding_format": "base64"},
        {"input": [[1, 2]], "encoding_format": "float"},
    ]


def test_requests_under_way(server: Any, client: Any) -> None:
    shared = {
        "object": "request",
        "endpoint": "/v1/completions",
        "prompt_tokens": 5,
        "created": 9,
        "age": 0.5,
    }
    data = [
        {**shared, "id": "r1", "state": "running", "position": None, "completion_tokens": 3},
        {**shared, "id": "r2", "state": "queued", "position": 0, "completion_tokens": 0},
    ]
    server.then(server.json({"object": "list", "data": data}), server.json({"id": "r2", "cancelled": True}))
    found = client.requests.list()
    assert len(found) == 2
    assert [(r.id, r.state, r.position, r.completion_tokens, r.age) for r in found] == [
        ("r1", "running", None, 3, 0.5),
        ("r2", "queued", 0, 0, 0.5),
    ]
    assert client.requests.cancel("r2") is None
    assert [(r.method, r.path) for r in server.requests] == [
        ("GET", "/v1/requests"),
        ("DELETE", "/v1/requests/r2"),
    ]


def test_a_rendered_prompt(server: Any, client: Any) -> None:
    warning = {"param": "x", "message": "unknown"}
    server.then(server.json({"prompt": "<Hi>", "token_ids": [1, 2], "count": 2, "warnings": [warning]}))
    found = client.chat.render(messages=HELLO, add_generation_prompt=False)
    assert (found.prompt, found.token_ids, found.count) == ("<Hi>", (1, 2), 2)
    assert found.warnings[0].param == "x"
    assert server.requests[0].path == "/v1/chat/completions/render"


def test_stored_responses(server: Any, client: Any) -> None:
    reply = {
        "id": "resp_1",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": [],
        "usage": None,
    }
    server.then(server.json(reply), server.json({"id": "resp_1", "deleted": True}))
    assert client.responses.retrieve("resp_1").id == "resp_1"
    assert client.responses.delete("resp_1") is None
    assert [(r.method, r.path, r.body) for r in server.requests] == [
        ("GET", "/v1/responses/resp_1", None),
        ("DELETE", "/v1/responses/resp_1", None),
    ]
    for call in (client.responses.retrieve, client.responses.delete, client.requests.cancel):
        with pytest.raises(ValueError, match="must not be empty"):
            call("")


CALLS: dict[str, Any] = {
    "lookup": lambda client: client.cache.lookup(prompt="p"),
    "render": lambda client: client.chat.render(messages=HELLO),
    "list": lambda client: client.requests.list(),
    "retrieve": lambda client: client.responses.retrieve("r"),
    "distribution": lambda client: client.distribution(prompt="p"),
    "attention": lambda client: client.attention(prompt="p"),
    "embeddings": lambda client: client.embeddings.create(input="p"),
    "responses": lambda client: client.responses.create(input="p"),
    "cancel": lambda client: client.requests.cancel("r"),
}
REPEATABLE = {"lookup", "render", "list", "retrieve"}


@pytest.mark.parametrize("name", CALLS)
def test_what_costs_nothing_is_sent_again_after_a_gateway_failed(
    server: Any, client: Any, sleeps: list[float], name: str
) -> None:
    server.then(*[server.error(502)] * (3 if name in REPEATABLE else 1))
    with pytest.raises(InternalServerError):
        CALLS[name](client)
    assert len(sleeps) == (2 if name in REPEATABLE else 0)


@pytest.mark.parametrize("name", CALLS)
def test_what_was_refused_is_sent_again(server: Any, client: Any, sleeps: list[float], name: str) -> None:
    server.then(server.error(429, Retry_After="7"), server.error(503, Retry_After="8"), server.error(500))
    with pytest.raises(InternalServerError):
        CALLS[name](client)
    assert sleeps == [7.0, 8.0]


def test_retry_after_may_be_a_date(server: Any, client: Any, sleeps: list[float]) -> None:
    past, far = (formatdate(unix, usegmt=True) for unix in (0, 4e9))
    server.then(server.error(429, Retry_After=past), server.error(503, Retry_After=far))
    server.then(server.json({"version": "1"}))
    assert client.version() == "1"
    assert sleeps == [0.0, 60.0]


def test_a_request_that_waited_as_long_as_it_may_is_not_sent_again(
    server: Any, client: Any, sleeps: list[float]
) -> None:
    error = {"error": {"message": "waited", "code": "queue_timeout"}}
    server.then(server.json(error, status=503, Retry_After="1"))
    with pytest.raises(ServiceUnavailableError):
        client.completions.create(prompt="p", max_queue_ms=5)
    assert sleeps == []


def test_where_tokens_came_from_in_short() -> None:
    steps = [("target", 4), ("draft", 5), ("draft", 5), ("bonus", 5), ("grammar", 9), ("target", 9)]
    found = ProvenanceSummary.of([TokenProvenance(source=source, step=step) for source, step in steps])
    assert found.counts == {"target": 2, "draft": 2, "bonus": 1, "grammar": 1}
    assert found.step_starts == (0, 1, 4)
    assert ProvenanceSummary.of(()) == ProvenanceSummary(counts={}, step_starts=())
