"""Whatever stands in whatever field of chat and responses is answered or refused, and never a crash."""

import json
import random
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from engine.loading.attention import load_attention_model
from tests.drafters import byte_checkpoint
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, served_model, serving

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "name": "n", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
    "parallel_tool_calls": True,
    "reasoning": {"max_tokens": 5, "effort": "low"},
    "reasoning_effort": "low",
    "chat_template_kwargs": {"a": [1]},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    "continue_final_message": False,
    "max_tokens": 8,
    "stream": False,
}
RESPONSE = {
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "x"}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
    ],
    "instructions": "i",
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "weather"}],
    },
    "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "store": False,
    "max_output_tokens": 8,
    "top_logprobs": 2,
    "stream": False,
}
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x",
    "none",
    "\ufffe",
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
]
VALUES += [["x"], {"type": "x"}, {"type": "function"}, {"role": "user"}, [None], {"": None}, "a" * 5000]
EMBEDDING = {
    "input": ["hello", [1, 2, 3]],
    "encoding_format": "float",
    "dimensions": 3,
    "cache_salt": "s",
    "user": "u",
}
MESSAGE = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "x"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
    ],
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["zz"],
    "max_tokens": 8,
    "stream": False,
}
LOOKUP = {"prompt": "hello", "cache_salt": "s", "model": "fake"}
PATHS = {
    "/v1/cache/lookup": LOOKUP,
    "/v1/attention": {"prompt": "hello", "layer": 1, "model": "fake"},
    "/v1/distribution": {**LOOKUP, "priority": 0, "deadline_ms": 60_000},
    "/v1/messages": MESSAGE,
    "/v1/messages/count_tokens": MESSAGE,
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/render": CHAT,
    "/v1/responses": RESPONSE,
    "/v1/embeddings": EMBEDDING,
}


@pytest.fixture(scope="module")
def server():
    engine, attention = FakeEngine(lambda _: say("hello", eos=True)), load_attention_model(byte_checkpoint())
    with serving(engine, is_loading=True) as running:
        running.state.publish(replace(served_model(engine), attention=attention))
        yield running


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values inside one."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path for path in [path] if path] + [
        p for key, item in members for p in places(item, (*path, key))
    ]


def changed(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the body with one to three values changed, left out or added to."""
    made: dict[str, Any] = json.loads(json.dumps(body))
    for _ in range(rng.randrange(1, 4)):
        *path, last = rng.choice(places(made))
        at: Any = made
        for key in path:
            at = at[key]
        if rng.random() < 0.15:
            del at[last]
        elif rng.random() < 0.15 and isinstance(at, dict):
            at[rng.choice(["x", "type", "role", "strict", "mood"])] = deepcopy(rng.choice(VALUES))
        else:
            at[last] = deepcopy(rng.choice(VALUES))
        if not made:
            return made
    return made


@pytest.mark.parametrize("path", PATHS)
def test_no_value_of_any_field_is_a_crash(server: RunningServer, path: str) -> None:
    assert server.client.post(path, json=PATHS[path]).status_code == 200
    rng, statuses = random.Random(5), set[int]()
    for _ in range(1200):
        body = changed(PATHS[path], rng)
        content = json.dumps(body).encode(errors="surrogatepass")
        response = server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), (response.text, body)
        assert response.status_code == 200 or len(response.content) < 4096
        statuses.add(response.status_code)
    assert statuses >= {200, 400}


@pytest.mark.parametrize("depth", [10, 200, 450, 20_000])
@pytest.mark.parametrize(
    "place", ["parameters", "arguments", "arguments as text", "kwargs", "response", "schema", "input"]
)
def test_what_is_nested_deeply_is_no_crash_either(server: RunningServer, depth: int, place: str) -> None:
    deep = '{"properties": ' * depth + "{}" + "}" * depth

    def function(name: str, value: str) -> str:
        return f'{{"type": "function", "function": {{"name": "f", "{name}": {value}}}}}'

    def calling(arguments: str) -> str:
        call = function("arguments", arguments)
        return f'{{"messages": [{hello}, {{"role": "assistant", "tool_calls": [{call}]}}]}}'

    hello = '{"role": "user", "content": "x"}'
    tool = f'{{"type": "function", "name": "f", "parameters": {deep}}}'
    use = f'{{"type": "tool_use", "id": "t", "name": "f", "input": {deep}}}'
    bodies = {
        "parameters": f'{{"messages": [{hello}], "tools": [{function("parameters", deep)}]}}',
        "arguments": calling(deep),
        "arguments as text": calling(json.dumps(deep)),
        "kwargs": f'{{"messages": [{hello}], "chat_template_kwargs": {{"a": {deep}}}}}',
        "response": f'{{"input": "x", "tools": [{tool}]}}',
        "schema": f'{{"messages": [{hello}], "tools": [{{"name": "f", "input_schema": {deep}}}]}}',
        "input": f'{{"messages": [{hello}, {{"role": "assistant", "content": [{use}]}}]}}',
    }
    paths = {"response": "/v1/responses", "schema": "/v1/messages", "input": "/v1/messages"}
    path = paths.get(place, "/v1/chat/completions")
    headers = {"content-type": "application/json"}
    response = server.client.post(path, content=bodies[place].encode(), headers=headers)
    assert response.status_code in ((200,) if depth == 10 else (200, 400)), response.text
