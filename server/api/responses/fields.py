"""From the body of a response to the fields of a chat completion."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.interface.errors import RequestError
from server.api.errors import describe
from server.api.json_object import Json, optional_member, wrong_type
from server.api.known_fields import refuse_where_set
from server.api.responses.input_items import read_input

_RENAMED = {"max_output_tokens": "max_tokens"}
_COPIED = (
    *("model", "temperature", "top_p", "parallel_tool_calls", "user", "stream", "seed"),
    *("prompt_cache_key", "safety_identifier", "service_tier"),
)
_ECHOED = ("instructions", "max_output_tokens", "temperature", "top_p", "user", "metadata")
_TRANSLATED = (
    *("input", "instructions", "tools", "tool_choice", "text", "reasoning", "include", "top_logprobs"),
    *("store", "previous_response_id", "metadata", "stream_options"),
)
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    "context_management": (),
    "max_tool_calls": (),
    "n": (1,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_provenance": (False,),
}
"""Fields that are not supported, or that a response has no place for, and the values that ask for nothing."""

_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, kw_only=True)
class TranslatedResponse:
    """A chat completion's fields, and what the response says again of its request."""

    chat: Json
    echo: Json
    messages: list[Json]  # of the conversation, without the instructions
    is_stored: bool


def translate_response(body: Json, earlier: list[Json]) -> TranslatedResponse:
    """Read the body of a response that continues `earlier` messages; raises RequestError."""
    refuse_where_set(body, _REFUSED)
    messages = [*earlier, *read_input(body.get("input"))]
    instructions = optional_member(body, "instructions", str, "a string")
    system: list[Json] = [] if instructions is None else [{"role": "system", "content": instructions}]
    known = {*_RENAMED, *_COPIED, *_TRANSLATED, *_REFUSED}
    chat: Json = {name: value for name, value in body.items() if name not in known}
    chat |= {name: body[name] for name in _COPIED if name in body}
    chat |= {new: body[old] for old, new in _RENAMED.items() if old in body}
    chat["messages"] = [*system, *messages]
    chat |= _tools(body) | _text(body) | _logprobs(body)
    reasoning = optional_member(body, "reasoning", dict, "an object") or {}
    chat["reasoning"] = {
        key: value for key, value in reasoning.items() if key not in ("summary", "generate_summary")
    }
    return TranslatedResponse(
        chat=chat, echo=_echo(body), messages=messages, is_stored=body.get("store") is True
    )


def _tools(body: Json) -> Json:
    tools = optional_member(body, "tools", list, "a list of tools")
    chat: Json = {}
    if tools is not None:
        chat["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    return chat


def _tool(value: object, where: str) -> Json:
    """Return chat's form of a function, whose members the Responses API has at its top."""
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    if value.get("type") != "function":
        raise RequestError(
            f"{where}.type must be function, got {describe(value.get('type'))}: no other is supported",
            param=f"{where}.type",
        )
    return {"type": "function", "function": {key: item for key, item in value.items() if key != "type"}}


def _tool_choice(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if value.get("type") == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    if value.get("type") == "allowed_tools":
        tools = value.get("tools")
        named = [_tool_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": value.get("mode"), "tools": named}}
    return value


def _text(body: Json) -> Json:
    text = optional_member(body, "text", dict, "an object") or {}
    chat: Json = {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None:
        return chat
    if not isinstance(form, dict):
        raise wrong_type("text.format", "an object", form)
    if form.get("type") == "json_schema":
        schema = {key: item for key, item in form.items() if key != "type"}
        form = {"type": "json_schema", "json_schema": schema}
    return {**chat, "response_format": form}


def _logprobs(body: Json) -> Json:
    include = optional_member(body, "include", list, "a list of strings") or []
    top = body.get("top_logprobs")
    if _LOGPROBS not in include and top is None:
        return {}
    return {"logprobs": True, **({} if top is None else {"top_logprobs": top})}


def _echo(body: Json) -> Json:
    echo: Json = {name: body.get(name) for name in _ECHOED}
    text = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    return {
        **echo,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": body.get("store") is True,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
    }
