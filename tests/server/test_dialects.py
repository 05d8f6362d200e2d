"""What clients of other servers send, and what they look for in an answer."""

import json
from typing import Any

import pytest

from engine.interface.grammar_spec import GrammarKind
from tests.fakes import CHAT_TEMPLATE, FakeEngine
from tests.server.harness import RunningServer, serving

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture(scope="module")
def server():
    with serving(FakeEngine(max_model_len=200)) as running:
        yield running


def post(server: RunningServer, path: str = CHAT, **body: Any) -> Any:
    base = {"messages": HELLO} if path.startswith(CHAT) else {}
    return server.client.post(path, json={**base, **body})


def prompt_of(server: RunningServer) -> str:
    return bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()


@pytest.mark.parametrize(
    ("body", "kind", "source"),
    [
        ({"guided_json": SCHEMA}, GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":"))),
        (
            {"json_schema": json.dumps(SCHEMA)},
            GrammarKind.JSON_SCHEMA,
            json.dumps(SCHEMA, separators=(",", ":")),
        ),
        ({"guided_regex": "a+"}, GrammarKind.REGEX, "a+"),
        ({"regex": "a+"}, GrammarKind.REGEX, "a+"),
        ({"guided_choice": ["x", "y"]}, GrammarKind.CHOICE, '["x", "y"]'),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            GrammarKind.JSON_SCHEMA,
            json.dumps(SCHEMA, separators=(",", ":")),
        ),
    ],
)
def test_other_servers_ways_to_constrain_are_honoured(
    server: RunningServer, body: dict[str, Any], kind: GrammarKind, source: str
) -> None:
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    assert "warnings" not in reply.json()
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.source) == (kind, source)


@pytest.mark.parametrize(
    "body", [{"regex": "a", "guided_json": {}}, {"regex": "a", "structured_outputs": {"regex": "a"}}]
)
def test_two_of_them_exclude_each_other(server: RunningServer, body: dict[str, Any]) -> None:
    response = post(server, **body)
    assert response.status_code == 400
    assert "exclude each other" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 100_000}]}, "messages"),
        (CHAT, {"max_tokens": 190}, "max_tokens"),
        ("/v1/completions", {"prompt": "x" * 300}, "prompt"),
        ("/v1/responses", {"input": "x" * 300}, "input"),
    ],
)
def test_a_context_that_is_too_long_has_openais_code(
    server: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    error = post(server, path, **body).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "maximum context length" in error["message"]


@pytest.mark.parametrize("max_tokens", [-1, None])
def test_max_tokens_of_minus_one_is_the_default(server: RunningServer, max_tokens: int | None) -> None:
    assert post(server, max_tokens=max_tokens).status_code == 200
    request = server.engine.requests[-1]
    assert request.params.max_tokens == 200 - len(request.prompt_token_ids)


def test_an_answer_may_go_on_from_the_last_message(server: RunningServer) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    assert post(server, messages=begun, continue_final_message=True).status_code == 200
    assert prompt_of(server) == "user\nhello\nassistant\nOnce upon"
    assert post(server, messages=begun, add_generation_prompt=False).status_code == 200
    assert prompt_of(server) == "user\nhello\nassistant\nOnce upon\n"
    both = post(server, continue_final_message=True, add_generation_prompt=True)
    assert both.json()["error"]["param"] == "continue_final_message"
    marked = [{"role": "user", "content": "\U0010fffe"}]
    assert post(server, messages=marked, continue_final_message=True).status_code == 400


def test_a_template_that_hides_the_last_message_cannot_go_on_from_it() -> None:
    with serving(FakeEngine(), chat_template="nothing") as server:
        response = post(server, continue_final_message=True)
        assert response.json()["error"]["param"] == "continue_final_message"


def test_a_chat_can_be_rendered_without_an_answer(server: RunningServer) -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    num_requests = len(server.engine.requests)
    reply = post(
        server, f"{CHAT}/render", messages=[{"role": "user", "content": "<|im_end|>"}], tools=[tool]
    ).json()
    assert len(server.engine.requests) == num_requests
    assert reply["prompt"].endswith("<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "now"' in reply["prompt"]
    assert reply["count"] == len(reply["token_ids"])
    assert reply["token_ids"].count(258) == reply["prompt"].count("<|im_end|>") - 1, (
        "what people write is text"
    )
    assert post(server, f"{CHAT}/render", mood="x").json()["warnings"][0]["param"] == "mood"


def test_the_tokenizer_describes_itself(server: RunningServer) -> None:
    assert server.client.get("/tokenizer_info").json() == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": 259,
        "model_max_length": 200,
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }


def test_a_slash_at_the_end_changes_nothing(server: RunningServer) -> None:
    assert server.client.get("/v1/models/").json() == server.client.get("/v1/models").json()
    assert server.client.post(f"{CHAT}/", json={"messages": HELLO}).status_code == 200
    assert server.client.head("/v1/models/").status_code == 200


def test_a_path_that_does_not_exist_is_named_with_those_that_do(server: RunningServer) -> None:
    error = server.client.post("/v1/chat/completion", json={}).json()["error"]
    assert '"/v1/chat/completion"' in error["message"]
    assert "/v1/chat/completions," in error["message"]
    wrong = server.client.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "it takes POST" in wrong.json()["error"]["message"]


def test_a_prediction_reaches_the_drafts(server: RunningServer) -> None:
    for content in ("abc", [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]):
        reply = post(server, prediction={"type": "content", "content": content}, n=2)
        assert reply.status_code == 200, reply.text
        assert "warnings" not in reply.json()
        assert [request.prediction for request in server.engine.requests[-2:]] == [tuple(b"abc")] * 2
    for value in ("abc", {"type": "other", "content": "abc"}, {"type": "content", "content": 5}):
        error = post(server, prediction=value).json()["error"]
        assert error["param"].startswith("prediction")
    response = server.client.post("/v1/completions", json={"prompt": "x", "prediction": {"type": "content"}})
    assert response.json()["error"]["code"] == "unsupported_parameter"
