"""/v1/responses on the wire, and through the OpenAI SDK."""

import json
from dataclasses import replace
from typing import Annotated, Any, get_args

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter

from engine.interface.grammar_spec import GrammarKind
from server.api.responses.store import ResponseStore
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Look out of the window.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EVENTS: TypeAdapter[Any] = TypeAdapter(
    Annotated[get_args(ResponseStreamEvent)[0], Field(discriminator="type")]
)


@pytest.fixture
def server():
    with serving(FakeEngine(lambda _: say("Hello there.", eos=True))) as running:
        yield running


def post(server: RunningServer, **body: Any) -> Any:
    return server.client.post("/v1/responses", json={"input": "hello", **body})


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events; each has its type twice, its number, and OpenAI's own shape."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        EVENTS.validate_python(event)
        events.append(event)
    return events


def whole_and_streamed(server: RunningServer, **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask twice; the stream's last response says what the whole one does, and so do its deltas."""
    response = post(server, **body)
    assert response.status_code == 200, response.text
    whole = response.json()
    Response.model_validate(whole)
    events = events_of(post(server, **body, stream=True).text)
    final = events[-1]["response"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert [plain(item) for item in final["output"]] == [plain(item) for item in whole["output"]]
    assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    for index, item in enumerate(final["output"]):
        mine = [event for event in events if event.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[-1] == {**mine[-1], "type": "response.output_item.done", "item": item}
        texts = "".join(event["delta"] for event in mine if "delta" in event)
        assert texts == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    return whole, events


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("id", "call_id")}


def test_a_text_comes_back_whole_and_in_openais_events(server: RunningServer) -> None:
    whole, events = whole_and_streamed(server, instructions="Be brief.", metadata={"a": "b"}, seed=3)
    assert whole["id"].startswith("resp_")
    assert whole["status"] == "completed"
    [message] = whole["output"]
    assert message["role"] == "assistant"
    assert message["content"] == [
        {"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}
    ]
    assert (whole["instructions"], whole["metadata"], whole["store"]) == ("Be brief.", {"a": "b"}, False)
    assert whole["usage"]["input_tokens"] == len(server.engine.requests[0].prompt_token_ids)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    prompt = bytes(i for i in server.engine.requests[0].prompt_token_ids if i < 256).decode()
    assert prompt == "system\nBe brief.\nuser\nhello\nassistant\n"
    assert server.engine.requests[0].params.seed == 3


def test_an_answer_that_is_cut_is_incomplete(server: RunningServer) -> None:
    server.engine.script = lambda _: say("Hello")
    whole, _ = whole_and_streamed(server, max_output_tokens=5)
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert server.engine.requests[0].params.max_tokens == 5


def test_an_answer_that_says_nothing_has_an_empty_message(server: RunningServer) -> None:
    server.engine.script = lambda _: say("", eos=True)
    whole, _ = whole_and_streamed(server)
    assert whole["output"][0]["content"][0]["text"] == ""


def test_calls_are_items_of_their_own(server: RunningServer) -> None:
    server.engine.script = lambda _: say(f"Wait.\n{CALL}\n{CALL}", eos=True, tokens_per_step=5)
    whole, events = whole_and_streamed(server, tools=[WEATHER])
    message, *calls = whole["output"]
    assert message["content"][0]["text"] == "Wait."
    assert [call["type"] for call in calls] == ["function_call"] * 2
    assert calls[0]["call_id"] != calls[1]["call_id"]
    assert (calls[0]["name"], calls[0]["arguments"]) == ("weather", '{"city": "Paris"}')
    kinds = [event["type"] for event in events if event.get("output_index") == 1]
    assert kinds[0] == "response.output_item.added"
    assert kinds[-2:] == ["response.function_call_arguments.done", "response.output_item.done"]


def test_a_thought_is_an_item(server: RunningServer) -> None:
    assert server.state.model is not None
    server.state.publish(replace(server.state.model, has_reasoning=True))
    server.engine.script = lambda _: say("<think>hm</think>Yes.", eos=True)
    whole, _ = whole_and_streamed(server)
    thought, message = whole["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["text"] == "Yes."
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    again = [*whole["output"], {"role": "user", "content": "Why?"}]
    assert post(server, input=again).status_code == 200


def test_tools_formats_and_choices_reach_the_engine(server: RunningServer) -> None:
    chosen = {"type": "function", "name": "weather"}
    for choice in ("required", chosen, {"type": "allowed_tools", "mode": "required", "tools": [chosen]}):
        response = post(server, tools=[WEATHER], tool_choice=choice)
        assert response.status_code == 200, response.text
        grammar = server.engine.requests[-1].params.grammar
        assert grammar is not None
        assert grammar.kind is GrammarKind.STRUCTURAL_TAG
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    assert post(server, text={"format": form}).json()["text"]["format"] == form
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert json.loads(grammar.source) == schema


def test_logprobs_come_with_the_text(server: RunningServer) -> None:
    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole, events = whole_and_streamed(server, **body)
    scores = whole["output"][0]["content"][0]["logprobs"]
    assert "".join(score["token"] for score in scores) == "Hello there."
    assert len(scores[0]["top_logprobs"]) == 2
    streamed = [score for event in events if "delta" in event for score in event["logprobs"]]
    assert streamed == scores


def test_a_hundred_likeliest_tokens_beside_each(server: RunningServer) -> None:
    include = ["message.output_text.logprobs"]
    whole, events = whole_and_streamed(server, include=include, top_logprobs=100)
    scores = whole["output"][0]["content"][0]["logprobs"]
    assert {len(score["top_logprobs"]) for score in scores} == {100}
    assert [score for event in events if "delta" in event for score in event["logprobs"]] == scores
    refused = post(server, include=include, top_logprobs=101)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "top_logprobs"
    assert "between 0 and 100" in refused.json()["error"]["message"]


CONVERSATION = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Rome"}'},
    {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "rain"}]},
]


def test_items_are_the_turns_of_a_chat(server: RunningServer) -> None:
    assert post(server, input=CONVERSATION).status_code == 200
    prompt = bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()
    assert prompt == (
        "system\nBe brief.\nuser\nWeather?\nassistant\nWait.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>\n'
        "user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>\nassistant\n"
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"instructions": 5}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "x"}, "conversation"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"temperature": 5}, "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_named_as_the_client_names_it(
    server: RunningServer, body: dict[str, Any], param: str
) -> None:
    response = post(server, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not server.engine.requests


def test_unknown_fields_are_warned_about(server: RunningServer) -> None:
    warnings = post(server, mood="good", reasoning={"effort": "high"}).json()["warnings"]
    assert {warning["param"] for warning in warnings} == {"mood", "reasoning.effort"}


def test_kept_responses_can_be_gone_on_from(server: RunningServer) -> None:
    server.state.responses = ResponseStore(2)
    first = post(server, store=True, instructions="Only now.").json()
    assert first["store"] is True
    assert server.client.get(f"/v1/responses/{first['id']}").json() == first
    second = post(server, store=True, input="And?", previous_response_id=first["id"], stream=True)
    final = events_of(second.text)[-1]["response"]
    assert final["previous_response_id"] == first["id"]
    prompt = bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()
    assert prompt == "user\nhello\nassistant\nHello there.\nuser\nAnd?\nassistant\n", (
        "instructions do not carry over"
    )
    third = post(server, store=True, previous_response_id=final["id"]).json()
    assert server.client.get(f"/v1/responses/{first['id']}").status_code == 404, "the oldest made room"
    deleted = server.client.delete(f"/v1/responses/{third['id']}")
    assert deleted.json() == {"id": third["id"], "object": "response", "deleted": True}
    assert server.client.delete(f"/v1/responses/{third['id']}").status_code == 404
    gone = post(server, previous_response_id=third["id"])
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "previous_response_not_found")


def test_tenants_do_not_see_each_others_responses() -> None:
    engine = FakeEngine(lambda _: say("x", eos=True))
    with serving(engine, keys=("key-of-one", "key-of-two")) as server:
        server.state.responses = ResponseStore(8)
        mine, theirs = ({"Authorization": f"Bearer key-of-{who}"} for who in ("one", "two"))
        body = {"input": "hello", "store": True}
        kept = server.client.post("/v1/responses", json=body, headers=mine).json()["id"]
        assert server.client.get(f"/v1/responses/{kept}", headers=mine).status_code == 200
        assert server.client.get(f"/v1/responses/{kept}", headers=theirs).status_code == 404
        assert server.client.delete(f"/v1/responses/{kept}", headers=theirs).status_code == 404
        follow = {"input": "x", "previous_response_id": kept}
        assert server.client.post("/v1/responses", json=follow, headers=theirs).status_code == 404


def test_the_store_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.responses.store.MAX_BYTES", 1000)
    store = ResponseStore(100)
    for number in range(5):
        store.put(b"t", {"id": f"r{number}", "text": "x" * 300}, [])
    assert [store.find(b"t", f"r{number}") is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    engine = FakeEngine(lambda _: say("Hello there.", eos=True))
    engine.hold()
    with serving(engine) as server:
        engine.when_open(1, engine.step)
        with server.client.stream("POST", "/v1/responses", json={"input": "x", "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: response.created"
            engine.die()
            text = "\n".join(lines)
        assert text.rstrip().split("\n")[-2] == "event: error"
        assert json.loads(text.rstrip().split("\n")[-1].removeprefix("data: "))["code"] == "dead"


class Step(BaseModel):
    explanation: str


class Answer(BaseModel):
    steps: list[Step]
    total: int


def test_the_sdks_create_stream_and_parse() -> None:
    text = '{"steps": [{"explanation": "count"}], "total": 3}'
    engine = FakeEngine(lambda _: say("Hello there.", eos=True))
    with serving(engine) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none-needed", max_retries=0)
        assert client.responses.create(model="fake", input="hello").output_text == "Hello there."
        with client.responses.stream(model="fake", input="hello") as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert "".join(deltas) == "Hello there." == stream.get_final_response().output_text
        engine.script = lambda _: say(text, eos=True)
        parsed = client.responses.parse(model="fake", input="hello", text_format=Answer).output_parsed
        assert parsed == Answer(steps=[Step(explanation="count")], total=3)
        engine.script = lambda _: say(CALL, eos=True)
        first: Any = client.responses.create(model="fake", input="Weather?", tools=[WEATHER])  # type: ignore[list-item]
        [call] = first.output
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        engine.script = lambda _: say("It is sunny.", eos=True)
        items: Any = [{"role": "user", "content": "Weather?"}, *first.output, output]
        assert client.responses.create(model="fake", input=items).output_text == "It is sunny."
        with pytest.raises(openai.BadRequestError, match="keeps no responses"):
            client.responses.create(model="fake", input="x", previous_response_id=first.id)
