"""What of a prompt has no effect or cannot be expressed is said in the reply; and filling in the middle."""

from dataclasses import replace
from typing import Any

import pytest

from server.text import ChatTemplate, FillInMiddle, Tokenizer
from tests.fakes import FakeEngine, byte_tokenizer_data, say
from tests.server.harness import RunningServer, serving

CHAT = [{"role": "user", "content": "hello"}]
NAMED = [{"role": "user", "name": "Ana", "content": "hello"}]
MIDDLE = FillInMiddle(prefix_token_id=1, suffix_token_id=2, middle_token_id=3, end_token_ids=frozenset({4}))
WITH_NAMES = "{% for message in messages %}{{ message.name }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture
def server():
    with serving(FakeEngine(lambda _: say("Hi", eos=True))) as running:
        yield running


def publish(server: RunningServer, **changes: Any) -> None:
    assert server.state.model is not None
    server.state.publish(replace(server.state.model, **changes))


def warnings(server: RunningServer, path: str, **body: Any) -> list[tuple[str, str]]:
    reply = server.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return [(warning["param"], warning["message"]) for warning in reply.json().get("warnings", [])]


def ascii_tokenizer() -> Tokenizer:
    """A vocabulary that lacks the bytes above 127."""
    data = byte_tokenizer_data()
    tokens = tuple(f"unused{i}" if 128 <= i < 256 else token for i, token in enumerate(data.tokens))
    return Tokenizer(replace(data, tokens=tokens))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "naïve"}, "prompt"),
        ("/v1/completions", {"prompt": ["x", "naïve", "naïve too"]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "naïve"}]}, "messages"),
        ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": "naïve"}]}, "messages"),
        ("/v1/responses", {"input": "naïve"}, "input"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "naïve"}]}, "messages"),
        ("/v1/embeddings", {"input": ["x", "naïve"]}, "input[1]"),
    ],
)
def test_text_that_the_vocabulary_cannot_express_is_named(
    server: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    assert warnings(server, path, **body) == []
    publish(server, tokenizer=ascii_tokenizer())
    [(found, message)] = warnings(server, path, **body)
    assert found == param
    assert "cannot express all of it (first U+00EF)" in message
    strict = server.client.post(path, json=body, headers={"x-strict": "1"})
    if "render" not in path:
        assert (strict.status_code, strict.json()["error"]["code"]) == (400, "strict")


def test_what_a_control_token_spells_is_not_lost(server: RunningServer) -> None:
    data = byte_tokenizer_data()
    tokens = tuple(f"unused{i}" if chr(i) in "<|>" else token for i, token in enumerate(data.tokens[:256]))
    publish(server, tokenizer=Tokenizer(replace(data, tokens=tokens + data.tokens[256:])))
    assert warnings(server, "/v1/completions", prompt="<|im_start|>user") == []
    assert warnings(server, "/v1/completions", prompt="a < b")[0][0] == "prompt"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/render"])
def test_a_name_that_the_template_does_not_show_is_warned_about(server: RunningServer, path: str) -> None:
    assert warnings(server, path, messages=CHAT) == []
    [(param, message)] = warnings(server, path, messages=[*CHAT, *NAMED])
    assert (param, "shows no names" in message) == ("messages[1].name", True)
    of_a_tool = {"role": "tool", "tool_call_id": "c", "name": "weather", "content": "sunny"}
    assert warnings(server, path, messages=[*CHAT, of_a_tool]) == []  # older clients name the function there
    publish(server, chat_template=ChatTemplate(WITH_NAMES, bos_token="", eos_token=""))
    assert warnings(server, path, messages=NAMED) == []


def test_the_middle_is_filled_in(server: RunningServer) -> None:
    publish(server, fill_in_middle=MIDDLE)
    assert warnings(server, "/v1/completions", prompt="ab", suffix="c") == []
    [request] = server.engine.requests
    assert request.prompt_token_ids == (1, 97, 98, 2, 99, 3)
    assert request.params.stop_token_ids == {4}
    assert warnings(server, "/v1/completions", prompt=[[97, 98], [5]], suffix="c", stop_token_ids=[7]) == []
    assert [r.prompt_token_ids for r in server.engine.requests[1:]] == [
        (1, 97, 98, 2, 99, 3),
        (1, 5, 2, 99, 3),
    ]
    assert server.engine.requests[1].params.stop_token_ids == {4, 7}
    assert warnings(server, "/v1/completions", prompt="ab", suffix="") == []
    assert server.engine.requests[-1].prompt_token_ids == (97, 98)
    assert server.engine.requests[-1].params.stop_token_ids == frozenset()


def test_the_begin_token_stands_before_the_middles_prompt(server: RunningServer) -> None:
    data = replace(byte_tokenizer_data(), bos_token_id=256, add_bos=True)
    publish(server, fill_in_middle=MIDDLE, tokenizer=Tokenizer(data))
    warnings(server, "/v1/completions", prompt="a", suffix="b")
    assert server.engine.requests[0].prompt_token_ids == (256, 1, 97, 2, 98, 3)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "has no tokens to fill in the middle with"),
        ("/v1/chat/completions", {"messages": CHAT, "suffix": "b"}, "/v1/completions has it"),
    ],
)
def test_where_the_middle_cannot_be_filled_in_is_said(
    server: RunningServer, path: str, body: dict[str, Any], message: str
) -> None:
    reply = server.client.post(path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "suffix", "unsupported_parameter")
    assert message in error["message"]


def test_an_echo_of_two_texts_is_refused(server: RunningServer) -> None:
    publish(server, fill_in_middle=MIDDLE)
    reply = server.client.post("/v1/completions", json={"prompt": "a", "suffix": "b", "echo": True})
    assert reply.status_code == 400
    assert "suffix and echo exclude each other" in reply.json()["error"]["message"]
