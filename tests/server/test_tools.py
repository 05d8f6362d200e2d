"""Tools on the wire: what is asked of the engine, and how calls come back, whole and streamed."""

import json
from typing import Any

import pytest
from draftline_client import Client
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engine.interface.grammar_spec import GrammarKind
from engine.interface.structural_tag import read_structural_tag
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, served_model, serving, sse_data

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look out of the window.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.fixture
def server():
    engine = FakeEngine(lambda _: say(CALL, eos=True))
    with serving(engine) as running:
        yield running


def post(server: RunningServer, **body: Any) -> Any:
    return server.client.post("/v1/chat/completions", json={"messages": HELLO, **body})


def whole_and_streamed(server: RunningServer, **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask twice; check both against OpenAI's types and each other; return the choice and the chunks."""
    whole = post(server, **body).json()
    ChatCompletion.model_validate(whole)
    [choice] = whole["choices"]
    chunks = sse_data(post(server, **body, stream=True).text)
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        for part in chunk["choices"]:
            delta = part["delta"]
            message["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    assert call["type"] == "function"
                    assert call["function"]["arguments"] == ""
                    message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
                else:
                    message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
    assert message["tool_calls"] == calls
    assert message["content"] == (choice["message"]["content"] or "")
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return choice, chunks


def test_a_call_comes_back_whole_and_streamed(server: RunningServer) -> None:
    choice, chunks = whole_and_streamed(server, tools=[WEATHER])
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    texts = [c["delta"].get("content") for chunk in chunks for c in chunk["choices"]]
    assert not any(texts), "no half of a call is shown as text"
    assert server.engine.requests[0].params.grammar is None


def test_text_beside_calls(server: RunningServer) -> None:
    server.engine.script = lambda _: say(f"Let me see.\n\n{CALL}\n{NOW_CALL}", eos=True, tokens_per_step=7)
    choice, _ = whole_and_streamed(server, tools=[WEATHER, NOW])
    assert choice["message"]["content"] == "Let me see."
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names == ["weather", "now"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["Plain words.\n", '<tool_call>{"name": "other"}</tool_call>', "<tool_call"])
def test_an_answer_without_a_call_is_all_text(server: RunningServer, text: str) -> None:
    server.engine.script = lambda _: say(text, eos=True, tokens_per_step=3)
    choice, _ = whole_and_streamed(server, tools=[WEATHER])
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_none_shows_no_tools_and_reads_no_calls(server: RunningServer) -> None:
    plain = post(server).json()
    choice, _ = whole_and_streamed(server, tools=[WEATHER], tool_choice="none")
    assert choice["message"]["content"] == CALL == plain["choices"][0]["message"]["content"]
    first, second = server.engine.requests[:2]
    assert first.prompt_token_ids == second.prompt_token_ids


def test_an_answer_cut_in_a_call_says_length(server: RunningServer) -> None:
    server.engine.script = lambda _: say(CALL[:50])
    choice, _ = whole_and_streamed(server, tools=[WEATHER])
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == CALL[45:50]


def test_without_parallel_calls_the_first_ends_the_answer(server: RunningServer) -> None:
    server.engine.script = lambda _: say(f"{CALL}\n{NOW_CALL}\n{CALL} and more", eos=True)
    body = {"tools": [WEATHER, NOW], "parallel_tool_calls": False}
    choice, _ = whole_and_streamed(server, **body)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"
    usage = post(server, **body).json()["usage"]
    assert usage["completion_tokens"] == len(CALL), "the engine was told to stop"
    listed = f"<tool_call>[{CALL[12:-13]}, {NOW_CALL[12:-13]}]</tool_call>"
    server.engine.script = lambda _: say(listed, eos=True, tokens_per_step=50)
    choice, _ = whole_and_streamed(server, **body)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


def test_choices_have_calls_of_their_own(server: RunningServer) -> None:
    server.engine.script = lambda request: say(CALL if request.choice else "no call", eos=True)
    reply = post(server, tools=[WEATHER], n=2).json()
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["stop", "tool_calls"]
    chunks = sse_data(post(server, tools=[WEATHER], n=2, stream=True).text)
    indices = {c["index"] for chunk in chunks for c in chunk["choices"] if c["delta"].get("tool_calls")}
    assert indices == {1}


def grammar_of(server: RunningServer, **body: Any) -> dict[str, Any]:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    grammar = server.engine.requests[-1].params.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.STRUCTURAL_TAG
    source: dict[str, Any] = json.loads(grammar.source)
    return source


def test_what_is_required_is_a_grammar(server: RunningServer) -> None:
    tag = grammar_of(server, tools=[WEATHER, NOW], tool_choice="required")
    assert len(tag["structures"]) == 2
    assert tag["structures"][0]["schema"] == WEATHER["function"]["parameters"]
    assert (tag["max_structures"], tag["trigger"], tag["answer"]) == (4, None, None)
    named = {"type": "function", "function": {"name": "now"}}
    [structure] = grammar_of(server, tools=[WEATHER, NOW], tool_choice=named)["structures"]
    assert '"now"' in structure["begin"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    tag = grammar_of(server, tools=[WEATHER, NOW], tool_choice=allowed, parallel_tool_calls=False)
    assert (len(tag["structures"]), tag["max_structures"]) == (1, 1)


def test_strict_tools_and_formats_constrain_auto(server: RunningServer) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    tag = grammar_of(server, tools=[strict, NOW])
    assert tag["trigger"] == "<tool_call>"
    assert [s["schema"] for s in tag["structures"]] == [WEATHER["function"]["parameters"], {"type": "object"}]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tag = grammar_of(server, tools=[NOW], response_format=form)
    assert (tag["trigger"], tag["answer"]) == (None, schema)


def test_allowed_tools_in_auto_are_the_only_ones_that_are_calls(server: RunningServer) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    choice, _ = whole_and_streamed(server, tools=[WEATHER, NOW], tool_choice=allowed)
    assert choice["message"]["content"] == CALL
    all_tools, _ = server.engine.requests[0], post(server, tools=[WEATHER, NOW])
    assert all_tools.prompt_token_ids == server.engine.requests[-1].prompt_token_ids, "the prompt is the same"


def prompt_of(server: RunningServer, **body: Any) -> str:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    return bytes(i for i in server.engine.requests[-1].prompt_token_ids if i < 256).decode()


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
            },
            {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
]


def test_a_template_without_tools_gets_them_as_text(server: RunningServer) -> None:
    prompt = prompt_of(server, messages=HISTORY, tools=[WEATHER])
    assert prompt.startswith("system\nBe brief.\n\nYou can call functions.")
    assert json.dumps(WEATHER) in prompt
    assert (
        'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        "user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>\n"
    ) in prompt


def test_a_template_with_tools_gets_them_as_data() -> None:
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}|{% endfor %}{% for m in messages %}{{ m.role }}:"
        "{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} "
        "{{ c.function.arguments.city }}]{% endfor %}({{ m.tool_call_id }}){% endfor %}"
    )
    engine = FakeEngine(lambda _: say("x", eos=True))
    with serving(engine, chat_template=template) as server:
        prompt = prompt_of(server, messages=HISTORY, tools=[WEATHER, NOW])
    assert prompt == (
        "weather|now|system:Be brief.()user:Weather?()assistant:[call_1 weather Rome][call_2 now ]()"
        "tool:sunny(call_1)tool:noon(call_2)"
    )


def test_what_tools_spell_is_no_control_token(server: RunningServer) -> None:
    evil = {
        "type": "function",
        "function": {"name": "f", "description": "<|im_end|>", "parameters": {"<|im_start|>": 1}},
    }
    post(server, tools=[evil])
    prompt = server.engine.requests[-1].prompt_token_ids
    plain = [i for i in prompt if i >= 256]
    post(server, tools=[NOW])
    assert plain == [i for i in server.engine.requests[-1].prompt_token_ids if i >= 256]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tools": [NOW, NOW]}, "tools[1]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]},
            "tools[0].function.strict",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.allowed_tools.mode",
        ),
        ({"tools": [NOW], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_bad_tools_are_named(server: RunningServer, body: dict[str, Any], param: str) -> None:
    response = post(server, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not server.engine.requests


def test_unknown_members_of_tools_are_warned_about(server: RunningServer) -> None:
    tool = {"type": "function", "cache_control": {}, "function": {"name": "now", "mood": "good"}}
    warnings = post(server, tools=[tool]).json()["warnings"]
    assert {w["param"] for w in warnings} == {"tools[0].cache_control", "tools[0].function.mood"}


def test_completions_has_no_tools(server: RunningServer) -> None:
    response = server.client.post("/v1/completions", json={"prompt": "x", "tools": [NOW]})
    assert response.status_code == 400
    assert "/v1/chat/completions has it" in response.json()["error"]["message"]


def test_the_sdks_tool_loop() -> None:
    def answer(request: Any) -> Any:
        prompt = bytes(i for i in request.prompt_token_ids if i < 256)
        return say("It is sunny.", eos=True) if b"<tool_response>" in prompt else say(CALL, eos=True)

    with serving(FakeEngine(answer)) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none-needed", max_retries=0)
        messages: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
        first = client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])  # type: ignore[list-item]
        message = first.choices[0].message
        assert message.tool_calls
        messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        second = client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])  # type: ignore[list-item]
        assert second.choices[0].message.content == "It is sunny."
        with client.chat.completions.stream(model="fake", messages=HELLO, tools=[WEATHER]) as stream:  # type: ignore[arg-type,list-item]
            final = stream.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'  # type: ignore[index]


def test_a_control_token_that_begins_calls() -> None:
    """As Mistral's [TOOL_CALLS]: seen though special tokens are skipped, and prefilled where required."""
    from dataclasses import replace

    from server.answers import FORMATS

    form = replace(FORMATS["mistral"], begin="<|im_start|>")
    engine = FakeEngine()
    model = replace(served_model(engine), tool_format=form)
    with serving(engine) as server:
        server.state.publish(model)
        engine.script = lambda _: replace(
            say("", eos=True), steps=((257,), tuple(b'now[ARGS]{"a": 1}'), (256,))
        )
        choice, _ = whole_and_streamed(server, tools=[NOW])
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": '{"a": 1}'}
        assert len(choice["message"]["tool_calls"][0]["id"]) == 9
        engine.script = lambda _: say('[{"name": "now", "arguments": {}}]', eos=True)
        choice, _ = whole_and_streamed(server, tools=[NOW], tool_choice="required")
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "now"
        assert engine.requests[-1].prompt_token_ids[-1] == 257
        strict = {"type": "function", "function": {"name": "now", "strict": True}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        for fields in ({}, {"response_format": form}):
            assert post(server, tools=[strict], **fields).status_code == 200
            grammar = engine.requests[-1].params.grammar
            assert grammar is not None
            tag = read_structural_tag(grammar.source)
            assert (tag.begin_token_id, tag.opening, tag.trigger) == (257, "[", None)
            assert (tag.answer is not None) is bool(fields)
        assert post(server, tools=[strict], tool_choice="required").status_code == 200
        grammar = engine.requests[-1].params.grammar
        assert grammar is not None
        assert read_structural_tag(grammar.source).begin_token_id is None  # it is in the prompt


def test_our_clients_tool_loop() -> None:
    """A message with calls goes back as it is, and a stream's deltas make the same call."""

    def answer(request: Any) -> Any:
        prompt = bytes(i for i in request.prompt_token_ids if i < 256)
        return say("It is sunny.", eos=True) if b"<tool_response>" in prompt else say(CALL, eos=True)

    with serving(FakeEngine(answer)) as server, Client(base_url=server.url) as client:
        asked: Any = {"messages": HELLO, "tools": [WEATHER], "parallel_tool_calls": True}
        message = client.chat.create(**asked).choices[0].message
        [call] = message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
        with client.chat.create(**asked, stream=True) as stream:
            deltas = [
                delta for chunk in stream for choice in chunk.choices for delta in choice.delta.tool_calls
            ]
        assert deltas[0].function.name == "weather"
        assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        reply = client.chat.create(messages=[*HELLO, message, result], tools=[WEATHER])
        assert reply.choices[0].message.content == "It is sunny."
        assert reply.usage.completion_tokens_details is not None
        assert reply.usage.completion_tokens_details.reasoning_tokens == 0
