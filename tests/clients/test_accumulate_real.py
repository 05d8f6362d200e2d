"""A streamed answer put together is the answer that is not streamed: both clients, the real server."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from draftline_client import ChatCompletion, Completion, Response, ResponseFunctionCall, Usage

from tests.clients.real import RealServer

HELLO = [{"role": "user", "content": "tell me, tell me"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
                "required": ["unit"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "climate")
]


@pytest.fixture
def client(build: Callable[..., Any], real: RealServer) -> Any:
    return build(base_url=real.url)


def counts(usage: Usage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def without_steps(choice: Any) -> Any:
    """A choice without the numbers of the engine's steps, which differ from run to run."""
    return replace(choice, provenance=tuple(replace(token, step=0) for token in choice.provenance))


def same(whole: Any, streamed: Any, change: Callable[[Any], Any] = without_steps) -> bool:
    """Compare all but what is of one run alone: ids, times, and where the cache and drafts helped."""
    assert counts(whole.usage) == counts(streamed.usage)
    assert streamed.usage.draftline is not None
    assert streamed.request_id is not None
    assert streamed.id != whole.id
    choices = [[change(choice) for choice in reply.choices] for reply in (whole, streamed)]
    assert choices[0] == choices[1]
    fixed = {"id": "", "created": 0, "usage": None, "choices": ()}
    return replace(whole, **fixed) == replace(streamed, **fixed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2},
        {"n": 2, "logprobs": 3},
        {"n": 2, "return_token_ids": True, "return_provenance": True, "speculation": {"mode": "off"}},
        {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 1, "return_token_ids": True},
        {"prompt_logprobs": 2, "logprobs": 0, "echo": True},
        {"prompt": list(b"token ids"), "no_such_field": 1},
        {"stop": ["e", "t", "a"], "logprobs": 2, "return_token_ids": True},
        {"ignore_eos": False, "max_tokens": 200, "temperature": 1.5},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_a_completion(client: Any, options: dict[str, Any]) -> None:
    full: dict[str, Any] = {"prompt": "tell me", "max_tokens": 24, "seed": 7, "ignore_eos": True, **options}
    if "no_such_field" in full:
        full["extra_body"] = {"no_such_field": full.pop("no_such_field")}
    whole = client.completions.create(**full)
    stream = client.completions.create(**full, stream=True)
    streamed = stream.get_final_completion()
    assert isinstance(whole, Completion)
    assert isinstance(streamed, Completion)
    assert same(whole, streamed)
    assert len(streamed.choices) == options.get("n", 1) * (2 if options.get("prompt") == ["a", "b"] else 1)
    assert bool(streamed.warnings) == ("extra_body" in full)
    assert (stream.text, stream.usage) == (streamed.text, streamed.usage)
    assert streamed.seed == whole.seed == 7


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 2, "return_token_ids": True, "prompt_logprobs": 1},
        {"n": 2, "return_provenance": True, "speculation": {"mode": "off"}},
        {"response_format": {"type": "json_object"}, "logprobs": True},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_an_answer(client: Any, options: dict[str, Any]) -> None:
    full: dict[str, Any] = {"messages": HELLO, "max_tokens": 24, "seed": 7, **options}
    whole = client.chat.create(**full)
    streamed = client.chat.create(**full, stream=True).get_final_completion()
    assert isinstance(streamed, ChatCompletion)
    assert same(whole, streamed)


@pytest.mark.parametrize(
    "options", [{}, {"n": 2, "logprobs": True, "top_logprobs": 1, "return_token_ids": True}]
)
def test_calls_of_tools(client: Any, options: dict[str, Any]) -> None:
    def without_ids(choice: Any) -> Any:
        calls = tuple(replace(call, id="") for call in choice.message.tool_calls)
        assert all(call.id for call in choice.message.tool_calls)
        return replace(choice, message=replace(choice.message, tool_calls=calls))

    full: dict[str, Any] = {"messages": HELLO, "max_tokens": 200, "seed": 7, "tools": TOOLS}
    full |= {"tool_choice": "required", "parallel_tool_calls": False, **options}
    whole = client.chat.create(**full)
    streamed = client.chat.create(**full, stream=True).get_final_completion()
    assert same(whole, streamed, without_ids)
    message = streamed.choices[0].message
    assert streamed.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls[0].function.name in ("weather", "climate")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "20 degrees"}
    assert client.chat.create(messages=[*HELLO, message, result], max_tokens=4).usage.completion_tokens == 4


def test_a_response(client: Any) -> None:
    full: dict[str, Any] = {"input": "tell me", "max_output_tokens": 24, "seed": 7, "top_logprobs": 2}
    whole = client.responses.create(**full)
    stream = client.responses.create(**full, stream=True)
    streamed = stream.get_final_response()
    assert isinstance(streamed, Response)
    assert (streamed.text, stream.text, streamed.seed) == (whole.text, whole.text, 7)
    assert (streamed.status, streamed.usage.output_tokens) == (whole.status, whole.usage.output_tokens)
    parts = [response.output[0].content[0].logprobs for response in (whole, streamed)]
    assert parts[0] == parts[1]
    assert len(parts[0][0].top_logprobs) == 2


def test_a_response_that_calls(client: Any) -> None:
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
    full: dict[str, Any] = {"input": "tell me", "seed": 7, "tools": tools, "tool_choice": "required"}
    full |= {"max_output_tokens": 200, "parallel_tool_calls": False}
    whole = client.responses.create(**full)
    streamed = client.responses.create(**full, stream=True).get_final_response()
    [call], [again] = whole.function_calls, streamed.function_calls
    assert isinstance(call, ResponseFunctionCall)
    assert (call.name, call.arguments) == (again.name, again.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"}
    more = client.responses.create(
        input=[{"role": "user", "content": "tell me"}, *whole.output, result], max_output_tokens=4
    )
    assert more.usage.output_tokens == 4


def test_the_text_so_far_and_its_pieces(client: Any) -> None:
    full: dict[str, Any] = {"prompt": "tell me", "max_tokens": 12, "seed": 7, "ignore_eos": True, "n": 2}
    whole = client.completions.create(**full)
    stream = client.completions.create(**full, stream=True)
    assert (stream.text, stream.usage) == ("", None)
    pieces = []
    for piece in stream.text_deltas():
        pieces.append(piece)
        assert stream.text == "".join(pieces)
    assert "".join(pieces) == whole.text
    assert stream.get_final_completion().choices[1].text == whole.choices[1].text
