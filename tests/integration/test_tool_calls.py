"""Tools on the real default model: a required call is valid, streamed or not; one seed, one answer."""

import json
from dataclasses import replace

import jsonschema
import pytest

from server.answers import FORMATS
from server.loading import load_served_model
from server.settings import ServeSettings
from tests.server.harness import serving_model, sse_data

TEXT = {"type": "string", "maxLength": 40}


def function(name, description, properties, required=None):
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "label": TEXT,
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["label"],
        }
    },
}
WEATHER = function(
    "get_weather",
    "Current weather of a city.",
    {"city": TEXT, "unit": {"enum": ["celsius", "fahrenheit"]}},
    ["city"],
)
ORDER = function(
    "place_order",
    "Order goods.",
    {
        "customer": {
            "type": "object",
            "properties": {
                "name": TEXT,
                "address": {
                    "type": "object",
                    "properties": {"street": TEXT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                    "required": ["street", "zip"],
                },
            },
            "required": ["name", "address"],
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"sku": TEXT, "quantity": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["sku", "quantity"],
            },
            "minItems": 1,
            "maxItems": 3,
        },
        "priority": {"enum": ["low", "normal", "high"]},
    },
)
TOOL_SETS = {
    "weather": [WEATHER, function("get_time", "The time in a zone.", {"zone": TEXT})],
    "shop": [
        ORDER,
        function("cancel_order", "Cancel.", {"order_id": {"type": "integer"}, "reason": TEXT}, ["order_id"]),
    ],
    "tree": [{"type": "function", "function": {"name": "show_tree", "parameters": TREE}}],
    "no arguments": [{"type": "function", "function": {"name": "list_files"}}, function("ping", "Ping.", {})],
    "twenty": [
        function(
            f"action_{i}",
            f"Do action {i}.",
            {
                "value": {"type": "number"},
                "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
                "note": TEXT,
            },
            ["value"],
        )
        for i in range(20)
    ],
}
CALLS_EACH = 20


@pytest.fixture(scope="module")
def api(default_checkpoint):
    """The model as it is served by default, with room for twenty tools."""
    model = load_served_model(
        ServeSettings(model=default_checkpoint.name, max_model_len=4096, kv_cache_memory=2**28)
    )
    with serving_model(model) as client:
        yield client
    model.engine.close()


def ask(api, tools, **body):
    body = {
        "messages": [{"role": "user", "content": "Use a tool for Paris, order 7 and a tree."}],
        "tools": tools,
        "tool_choice": "required",
        "max_tokens": 1500,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        **body,
    }
    response = api.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def streamed_calls(text):
    calls = []
    for chunk in sse_data(text):
        for choice in chunk["choices"]:
            assert not choice["delta"].get("content")
            for call in choice["delta"].get("tool_calls", []):
                if "id" in call:
                    calls.append(call["function"])
                else:
                    calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return calls


def schema_of(tools, name):
    [found] = [tool["function"] for tool in tools if tool["function"]["name"] == name]
    return found.get("parameters", {"type": "object", "properties": {}, "additionalProperties": False})


@pytest.mark.parametrize("kind", TOOL_SETS)
def test_every_required_call_parses_and_validates(api, kind):
    """A hundred calls at temperature 1; a stream brings the very same ones."""
    tools, num_calls = TOOL_SETS[kind], 0
    for seed in range(CALLS_EACH):
        body = {"seed": seed, "parallel_tool_calls": seed % 2 == 0}
        [choice] = ask(api, tools, **body).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert len(calls) == 1 or body["parallel_tool_calls"]
        for call in calls:
            jsonschema.validate(json.loads(call["arguments"]), schema_of(tools, call["name"]))
        num_calls += len(calls)
        if seed < 4:
            assert streamed_calls(ask(api, tools, **body, stream=True).text) == calls
    assert num_calls >= CALLS_EACH


def test_a_named_function_is_the_one(api):
    chosen = {"type": "function", "function": {"name": "action_7"}}
    for seed in range(5):
        [choice] = ask(api, TOOL_SETS["twenty"], tool_choice=chosen, seed=seed).json()["choices"]
        assert {call["function"]["name"] for call in choice["message"]["tool_calls"]} == {"action_7"}


@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_one_seed_one_answer_with_tools(api, tool_choice):
    body = {"tool_choice": tool_choice, "seed": 11, "max_tokens": 80, "return_token_ids": True}
    strict = [
        {"type": "function", "function": {**tool["function"], "strict": True}}
        for tool in TOOL_SETS["weather"]
    ]
    for tools in (TOOL_SETS["weather"], strict):
        answers = [
            ask(api, tools, **body, speculation={"mode": mode}).json()["choices"][0]["token_ids"]
            for mode in ("off", "auto", "ngram")
        ]
        chunks = sse_data(ask(api, tools, **body, stream=True).text)
        answers.append([i for chunk in chunks for c in chunk["choices"] for i in c.get("token_ids", [])])
        assert all(answer == answers[0] for answer in answers)


def test_strict_calls_of_auto_follow_the_schema(api):
    """The model is led to a call by what it reads; from its beginning the grammar holds."""
    strict = [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]
    example = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    shown = f"<tool_call>\n{json.dumps(example)}\n</tool_call>"
    messages = [{"role": "user", "content": f"Repeat exactly this and nothing else: {shown}"}]
    num_calls = 0
    for seed in range(10):
        [choice] = ask(
            api, strict, tool_choice="auto", messages=messages, seed=seed, temperature=0.7, max_tokens=120
        ).json()["choices"]
        for call in choice["message"].get("tool_calls", []):
            if choice["finish_reason"] == "tool_calls":
                jsonschema.validate(
                    json.loads(call["function"]["arguments"]), WEATHER["function"]["parameters"]
                )
                num_calls += 1
    assert num_calls > 0


def test_strict_calls_behind_a_control_token_follow_the_schema(default_checkpoint):
    """As with Mistral's [TOOL_CALLS]; a bias makes the model write the mark where it may."""
    loaded = load_served_model(
        ServeSettings(model=default_checkpoint.name, max_model_len=2048, kv_cache_memory=2**27)
    )
    model = replace(loaded, tool_format=replace(FORMATS["mistral"], begin="<|im_start|>"))
    mark = loaded.tokenizer.find_special("<|im_start|>")
    tools = [{"type": "function", "function": {**ORDER["function"], "strict": True}}, *TOOL_SETS["weather"]]
    with serving_model(model) as client:
        for seed in range(10):
            body = {"tool_choice": "auto", "seed": seed, "logit_bias": {str(mark): 100}}
            [choice] = ask(client, tools, **body).json()["choices"]
            assert choice["finish_reason"] == "tool_calls"
            for call in choice["message"]["tool_calls"]:
                arguments = json.loads(call["function"]["arguments"])
                if call["function"]["name"] == ORDER["function"]["name"]:
                    jsonschema.validate(arguments, ORDER["function"]["parameters"])
    loaded.engine.close()
