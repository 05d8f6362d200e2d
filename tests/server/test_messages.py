"""/v1/messages on the wire, and through the Anthropic SDK."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from pydantic import TypeAdapter

from engine.interface.grammar_spec import GrammarKind
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Look out of the window.", "input_schema": SCHEMA}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HELLO = [{"role": "user", "content": "hello"}]
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(lambda _: say("Hello there.", eos=True))) as running:
        yield running


def post(server: RunningServer, path: str = "", **body: Any) -> Any:
    return server.client.post(f"/v1/messages{path}", json={"messages": HELLO, "max_tokens": 90, **body})


def prompt_of(server: RunningServer) -> str:
    return bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events; each has its type twice and Anthropic's own shape."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        EVENTS.validate_python(events[-1])
    return events


def whole_and_streamed(server: RunningServer, **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask twice; what the stream's events add up to is the whole message."""
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    whole = reply.json()
    Message.model_validate(whole)
    events = events_of(post(server, **body, stream=True).text)
    assert [event["type"] for event in (events[0], *events[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == []
    blocks: list[dict[str, Any]] = []
    for event in events[1:-2]:
        index = event["index"]
        if event["type"] == "content_block_start":
            assert index == len(blocks)
            blocks.append({**event["content_block"], "text_so_far": ""})
        elif event["type"] == "content_block_delta":
            assert index == len(blocks) - 1
            _, text = event["delta"].values()
            blocks[-1]["text_so_far"] += text
    for block, expected in zip(blocks, whole["content"], strict=True):
        text = block.pop("text_so_far")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            assert json.loads(text or "{}") == expected["input"]
        else:
            assert text == expected[block["type"]]
    final = events[-2]
    assert final["delta"] == {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    assert final["usage"] == whole["usage"]
    return whole, events


def test_a_text_comes_back_whole_and_in_anthropics_events(server: RunningServer) -> None:
    whole, events = whole_and_streamed(server, system="Be brief.", seed=3, metadata={"user_id": "u"})
    assert whole["id"].startswith("msg_")
    assert whole["content"] == [{"type": "text", "text": "Hello there.", "citations": None}]
    assert (whole["stop_reason"], whole["stop_sequence"], whole["seed"]) == ("end_turn", None, 3)
    assert whole["usage"]["input_tokens"] == len(server.engine.requests[0].prompt_token_ids)
    assert whole["usage"]["output_tokens"] == len("Hello there.") + 1
    assert "warnings" not in whole
    kinds = [event["type"] for event in events]
    assert kinds[1] == "content_block_start"
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3] == "content_block_stop"
    assert prompt_of(server) == "system\nBe brief.\nuser\nhello\nassistant\n"
    params = server.engine.requests[0].params
    assert (params.seed, params.max_tokens) == (3, 90)


def test_what_came_from_the_cache_is_counted_apart(server: RunningServer) -> None:
    server.engine.script = lambda _: say("Hi", cached=7)
    whole, events = whole_and_streamed(server)
    num_prompt_tokens = len(server.engine.requests[0].prompt_token_ids)
    assert whole["usage"]["cache_read_input_tokens"] == 7
    assert whole["usage"]["input_tokens"] == num_prompt_tokens - 7
    assert events[0]["message"]["usage"]["input_tokens"] == num_prompt_tokens


def test_why_an_answer_ended(server: RunningServer) -> None:
    whole, _ = whole_and_streamed(server, stop_sequences=["ere", "zzz"])
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "ere")
    assert whole["content"][0]["text"] == "Hello th"
    server.engine.script = lambda _: say("Hello")
    whole, _ = whole_and_streamed(server, max_tokens=5)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("max_tokens", None)
    server.engine.script = lambda _: say("", eos=True)
    whole, _ = whole_and_streamed(server)
    assert (whole["content"], whole["stop_reason"]) == ([], "end_turn")


def test_calls_are_blocks_of_their_own(server: RunningServer) -> None:
    server.engine.script = lambda _: say(f"Wait.\n{CALL}\n{CALL}", eos=True, tokens_per_step=5)
    whole, _ = whole_and_streamed(server, tools=[WEATHER])
    text, *calls = whole["content"]
    assert text["text"] == "Wait."
    assert whole["stop_reason"] == "tool_use"
    assert [(call["type"], call["name"], call["input"]) for call in calls] == [
        ("tool_use", "weather", {"city": "Paris"})
    ] * 2
    assert calls[0]["id"] != calls[1]["id"]


def test_a_call_that_was_cut_short_keeps_its_text(server: RunningServer) -> None:
    server.engine.script = lambda _: say(CALL[: CALL.index("ris")])
    call = post(server, tools=[WEATHER]).json()["content"][0]
    assert (call["input"], call["partial_json"]) == ({}, '{"city": "Pa')


def test_a_thought_is_a_block_and_goes_back_into_the_history(server: RunningServer) -> None:
    assert server.state.model is not None
    server.state.publish(replace(server.state.model, has_reasoning=True))
    server.engine.script = lambda _: say("<think>hm</think>Yes.", eos=True)
    whole, _ = whole_and_streamed(server)
    assert whole["content"][0] == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert whole["content"][1]["text"] == "Yes."
    assert whole["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    again = [*HELLO, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": "Why?"}]
    assert post(server, messages=again).status_code == 200
    budget = {"type": "enabled", "budget_tokens": 9}
    assert post(server, thinking=budget).status_code == 200
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert '"max_tokens":9' in grammar.source


def test_every_kind_of_message_reaches_the_template(server: RunningServer) -> None:
    question = {"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}
    sunny = [{"type": "text", "text": "sunny"}]
    history = [
        {"role": "user", "content": [question]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": sunny},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
    ]  # fmt: skip
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert post(server, messages=history, system=system).status_code == 200
    prompt = prompt_of(server)
    assert prompt.startswith("system\nBe brief.\nuser\nWeather?\nassistant\nI look.")
    assert '"city": "Paris"' in prompt
    assert prompt.index("sunny") < prompt.index("Error: no") < prompt.index("And?")


def test_a_last_message_of_the_assistant_is_gone_on_with(server: RunningServer) -> None:
    prefill = [*HELLO, {"role": "assistant", "content": "The answer is ("}]
    assert post(server, messages=prefill).status_code == 200
    assert prompt_of(server).endswith("assistant\nThe answer is (")


@pytest.mark.parametrize(
    ("choice", "is_held"),
    [
        ({"type": "any"}, True),
        ({"type": "tool", "name": "weather"}, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True),
        ({"type": "auto"}, False),
        ({"type": "none"}, False),
    ],
)
def test_choices_of_tools(server: RunningServer, choice: dict[str, Any], is_held: bool) -> None:
    assert post(server, tools=[WEATHER], tool_choice=choice).status_code == 200
    grammar = server.engine.requests[-1].params.grammar
    assert (grammar is not None and grammar.kind is GrammarKind.STRUCTURAL_TAG) is is_held
    if grammar is not None:
        count = json.loads(grammar.source)["max_structures"]
        assert count == (1 if choice.get("disable_parallel_tool_use") else 4)


def test_a_format_holds_the_answer_to_its_schema(server: RunningServer) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_config": {"format": form, "effort": "max"}}, {"output_format": form}):
        assert post(server, **fields).status_code == 200
        grammar = server.engine.requests[-1].params.grammar
        assert grammar is not None
        assert json.loads(grammar.source) == SCHEMA


def test_tokens_are_counted_without_an_answer(server: RunningServer) -> None:
    body = {"system": "Be brief.", "tools": [WEATHER]}
    counted = post(server, "/count_tokens", **body).json()
    MessageTokensCount.model_validate(counted)
    assert server.engine.requests == []
    assert post(server, **body).json()["usage"]["input_tokens"] == counted["input_tokens"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": "x"}, "messages must be a list of messages"),
        ({"messages": []}, "messages must have 1 to 4096 entries, got 0"),
        ({"messages": [3]}, "messages[0] must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role must be user or assistant"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content must be a string or a list"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0] must be an object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            'messages[0].content[0].type must be text, got "image"',
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 3}]}]},
            "messages[0].content[0].input must be an object",
        ),
        ({"system": 3}, "system must be a string or a list of blocks"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"stop_sequences": [3]}, "stop_sequences must be a list of strings"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "this server runs no tools"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "x", "input_schema": 3}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type must be auto, any, tool or none"),
        ({"thinking": {"type": "often"}}, "thinking.type must be enabled, disabled or adaptive"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": "x"}},
            "thinking.budget_tokens must be an integer",
        ),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format must be"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id must be a string"),
        ({"container": "x"}, "container is not supported"),
        ({"n": 2}, "n is not supported"),
        ({"return_token_ids": True}, "return_token_ids is not supported"),
    ],
)
def test_what_is_refused_has_anthropics_shape(
    server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    reply = post(server, **fields)
    assert reply.status_code == 400
    body = reply.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert message in body["error"]["message"]
    assert server.engine.requests == []


def test_unknown_fields_are_warned_about(server: RunningServer) -> None:
    whole, events = whole_and_streamed(server, seed=1, temprature=1)
    assert [warning["param"] for warning in whole["warnings"]] == ["temprature"]
    assert events[0]["message"]["warnings"] == whole["warnings"]


def test_the_sdk_lists_the_model(server: RunningServer) -> None:
    with Anthropic(base_url=server.url, api_key="x") as client:
        page = client.models.list()
        [model] = page.data
        assert model == client.models.retrieve("fake")
    assert (model.type, model.id, model.max_tokens) == ("model", "fake", server.engine.limits.max_model_len)
    assert model.created_at.timestamp() == server.client.get("/v1/models").json()["data"][0]["created"]


def test_the_anthropic_sdk(server: RunningServer) -> None:
    with Anthropic(base_url=server.url, api_key="x") as client:
        message = client.messages.create(model="fake", max_tokens=50, messages=HELLO)
        assert message.content[0].text == "Hello there."
        with client.messages.stream(model="fake", max_tokens=50, messages=HELLO) as stream:
            assert "".join(stream.text_stream) == "Hello there."
            assert stream.get_final_message().usage.output_tokens == 13
        counted = client.messages.count_tokens(model="fake", messages=HELLO)
        assert counted.input_tokens == message.usage.input_tokens
        server.engine.script = lambda _: say(CALL, eos=True)
        with client.messages.stream(model="fake", max_tokens=99, messages=HELLO, tools=[WEATHER]) as stream:
            final = stream.get_final_message()
        assert (final.stop_reason, final.content[0].input) == ("tool_use", {"city": "Paris"})
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            client.messages.create(model="other", max_tokens=50, messages=HELLO)


def test_keys_and_errors_of_the_sdk() -> None:
    with serving(FakeEngine(max_open=1), keys=["the-right-key"], max_open=1) as server:
        with Anthropic(base_url=server.url, api_key="the-right-key", max_retries=0) as client:
            assert client.messages.create(model="fake", max_tokens=5, messages=HELLO).content
            server.engine.hold()
            server.engine.max_open = 0
            with pytest.raises(anthropic.RateLimitError) as full:
                client.messages.create(model="fake", max_tokens=5, messages=HELLO)
            assert full.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
        with Anthropic(base_url=server.url, api_key="a-wrong-one", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as wrong:
                client.messages.create(model="fake", max_tokens=5, messages=HELLO)
            assert wrong.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


def test_both_headers_name_one_tenant() -> None:
    with serving(FakeEngine(), keys=["the-right-key"]) as server:
        for headers in ({"x-api-key": "the-right-key"}, {"authorization": "Bearer the-right-key"}):
            assert server.client.post("/v1/completions", json={"prompt": "x"}, headers=headers).is_success
        assert len({request.cache_salt for request in server.engine.requests}) == 1
        both = {"x-api-key": "the-right-key", "authorization": "Bearer wrong"}
        assert server.client.post("/v1/completions", json={"prompt": "x"}, headers=both).status_code == 401


def test_a_failure_in_the_middle_of_a_stream_is_an_event() -> None:
    with serving(FakeEngine(lambda _: say("Hello"))) as server:
        server.engine.hold()
        server.engine.when_open(1, lambda: (server.engine.step(2), server.engine.die()))
        *_, last = post(server, stream=True).text.removesuffix("\n\n").split("\n\n")
        name, data = last.split("\n")
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))
        assert (error["type"], error["error"]["type"]) == ("error", "overloaded_error")
