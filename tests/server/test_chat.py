"""POST /v1/chat/completions over a real socket, against a scripted engine."""

from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import IM_END, IM_START, FakeEngine
from tests.server.harness import RunningServer, serving, sse_data

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine()) as running:
        yield running


def post(server: RunningServer, **body: object) -> httpx.Response:
    return server.client.post("/v1/chat/completions", json=body)


def test_a_chat_completion_has_openais_shape(server: RunningServer) -> None:
    reply = post(server, messages=HELLO, seed=7, max_completion_tokens=4).json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert reply.pop("created") > 0
    usage = reply.pop("usage")
    assert reply == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": "fp_fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "c0s7", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "seed": 7,
            }
        ],
    }
    assert usage["completion_tokens"] == 4


def test_messages_go_through_the_template_with_their_special_tokens(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts, "name": None}]
    post(server, messages=messages)
    assert server.engine.requests[-1].prompt_token_ids == (
        *(IM_START, *b"system\ns", IM_END, *b"\n"),
        *(IM_START, *b"user\nab", IM_END, *b"\n"),
        *(IM_START, *b"assistant\n"),
    )


def test_a_template_that_knows_no_developer_gets_system(server: RunningServer) -> None:
    post(server, messages=[{"role": "developer", "content": "d"}])
    prompt = bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256)
    assert prompt.startswith(b"system\nd")


def test_max_tokens_defaults_to_what_fits(server: RunningServer) -> None:
    post(server, messages=HELLO)
    request = server.engine.requests[-1]
    assert request.params.max_tokens == server.engine.limits.max_model_len - len(request.prompt_token_ids)


def test_both_names_of_max_tokens_may_agree_but_not_differ(server: RunningServer) -> None:
    assert post(server, messages=HELLO, max_tokens=3, max_completion_tokens=3).status_code == 200
    refused = post(server, messages=HELLO, max_tokens=3, max_completion_tokens=4)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_completion_tokens"


def test_a_stream_begins_with_roles_and_ends_with_empty_deltas(server: RunningServer) -> None:
    response = post(
        server,
        messages=HELLO,
        seed=1,
        n=2,
        max_tokens=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = sse_data(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["delta"] for choice in choices[:2]] == [{"role": "assistant", "content": ""}] * 2
    assert [choice["index"] for choice in choices[:2]] == [0, 1]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == f"c{index}"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        assert mine[-1]["delta"] == {}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_return_token_ids(server: RunningServer) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "seed": 1, "return_token_ids": True}
    whole = post(server, **body).json()
    assert whole["prompt_token_ids"][0] == IM_START
    assert bytes(whole["choices"][0]["token_ids"]) == b"c0s"
    chunks = sse_data(post(server, **body, stream=True).text)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    streamed = [i for chunk in chunks for choice in chunk["choices"] for i in choice.get("token_ids", [])]
    assert streamed == whole["choices"][0]["token_ids"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([1], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "user", "content": "x"}] * 4097, "messages"),
    ],
)
def test_bad_messages_are_named(server: RunningServer, messages: object, param: str) -> None:
    response = post(server, messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_unknown_members_of_messages_are_warned_about(server: RunningServer) -> None:
    reply = post(server, messages=[{"role": "user", "content": "x", "mood": "good"}]).json()
    assert [warning["param"] for warning in reply["warnings"]] == ["messages[0].mood"]


def test_a_model_without_a_template_says_what_to_use() -> None:
    with serving(FakeEngine(), chat_template=None) as server:
        response = post(server, messages=HELLO)
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_a_template_may_refuse_messages() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with serving(FakeEngine(), chat_template=template) as server:
        response = post(server, messages=HELLO)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
