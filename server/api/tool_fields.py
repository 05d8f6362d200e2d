"""Parsers of the fields about tools: tools, tool_choice, and calls in the history of a conversation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.interface.errors import RequestError
from server.answers import Tool, ToolCall
from server.api.body import load_json
from server.api.errors import describe, shorten
from server.api.limits import MAX_TOOLS

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TOOL_KEYS = frozenset({"type", "function"})
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})
_SHOWN_KEYS = ("name", "description", "parameters")  # to the model, in the client's order
_CALL_KEYS = frozenset({"id", "type", "function", "index"})
_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}}


@dataclass(frozen=True, kw_only=True)
class RequestedTools:
    """The field `tools`."""

    tools: tuple[Tool, ...]
    unknown_keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """The field `tool_choice`."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None  # of the tools that may be called; None: all


def parse_tools(value: object) -> RequestedTools:
    """Read OpenAI's list of `{"type": "function", "function": {"name", "parameters", ...}}`."""
    if not isinstance(value, list):
        raise _wrong("tools", "a list of tools", value)
    if len(value) > MAX_TOOLS:
        raise RequestError(f"tools has {len(value)} tools, the limit is {MAX_TOOLS}", param="tools")
    tools, unknown = list[Tool](), list[str]()
    for number, item in enumerate(value):
        tool = _tool(item, f"tools[{number}]", unknown)
        if any(tool.name == other.name for other in tools):
            raise RequestError(f"tools[{number}]: two tools are named {tool.name}", param=f"tools[{number}]")
        tools.append(tool)
    return RequestedTools(tools=tuple(tools), unknown_keys=tuple(unknown))


def parse_tool_choice(value: object) -> ToolChoice:
    """Read "none", "auto", "required", a function by name, or OpenAI's `allowed_tools`."""
    if value in ("none", "auto", "required"):
        return ToolChoice(mode=value)
    if isinstance(value, dict) and value.get("type") == "function":
        return ToolChoice(mode="required", names=(_chosen_name(value, "tool_choice"),))
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _allowed_tools(value.get("allowed_tools"))
    shown = describe(value.get("type") if isinstance(value, dict) else value)
    raise RequestError(
        "tool_choice must be none, auto, required, a function or allowed_tools, got " + shown,
        param="tool_choice",
    )


def parse_tool_calls(value: object, where: str, unknown: list[str]) -> tuple[ToolCall, ...]:
    """Read the calls of an assistant's message."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _wrong(where, f"a list of up to {MAX_TOOLS} calls", value)
    return tuple(_tool_call(item, f"{where}[{number}]", unknown) for number, item in enumerate(value))


def check_choice(choice: ToolChoice, tools: tuple[Tool, ...]) -> None:
    """Raise RequestError for a choice that the tools do not have."""
    if choice.mode == "required" and not tools:
        raise RequestError("tool_choice asks for a call, but there are no tools", param="tool_choice")
    known = {tool.name for tool in tools}
    for name in choice.names or ():
        if name not in known:
            raise RequestError(
                f"tool_choice names {describe(name)}, which is not in tools", param="tool_choice"
            )


def _tool(value: object, where: str, unknown: list[str]) -> Tool:
    if not isinstance(value, dict):
        raise _wrong(where, 'an object {"type": "function", "function": {...}}', value)
    if value.get("type", "function") != "function":
        raise RequestError(
            f"{where}.type must be function, got {describe(value.get('type'))}: no other is supported",
            param=f"{where}.type",
        )
    function = value.get("function")
    inside = f"{where}.function"
    if not isinstance(function, dict):
        raise _wrong(inside, "an object with name and parameters", function)
    unknown += [f"{where}.{key}" for key, item in value.items() if key not in _TOOL_KEYS and item is not None]
    unknown += [
        f"{inside}.{key}" for key, item in function.items() if key not in _FUNCTION_KEYS and item is not None
    ]
    for key, types, expected in (
        ("description", str, "a string"),
        ("strict", bool, "true or false"),
        ("parameters", dict, "a JSON schema"),
    ):
        if function.get(key) is not None and not isinstance(function[key], types):
            raise _wrong(f"{inside}.{key}", expected, function[key])
    parameters = function.get("parameters") or _NO_PARAMETERS
    kept = {key: item for key, item in function.items() if key in _SHOWN_KEYS and item is not None}
    return Tool(
        name=_name(function.get("name"), f"{inside}.name"),
        definition={"type": "function", "function": {**kept, "parameters": parameters}},
        parameters=parameters,
        strict=function.get("strict") is True,
    )


def _allowed_tools(value: object) -> ToolChoice:
    where = "tool_choice.allowed_tools"
    if not isinstance(value, dict):
        raise _wrong(where, "an object with mode and tools", value)
    mode, tools = value.get("mode"), value.get("tools")
    if mode not in ("auto", "required"):
        raise _wrong(f"{where}.mode", "auto or required", mode)
    if not isinstance(tools, list) or not tools or len(tools) > MAX_TOOLS:
        raise _wrong(f"{where}.tools", f"a list of 1 to {MAX_TOOLS} tools", tools)
    names = tuple(_chosen_name(tool, f"{where}.tools[{number}]") for number, tool in enumerate(tools))
    return ToolChoice(mode=mode, names=names)


def _chosen_name(value: object, where: str) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise _wrong(where, 'an object {"type": "function", "function": {"name": ...}}', value)
    return _name(function.get("name"), f"{where}.function.name")


def _tool_call(value: object, where: str, unknown: list[str]) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        raise _wrong(where, "a call of a function", value)
    if value.get("type", "function") != "function":
        raise _wrong(f"{where}.type", "function", value.get("type"))
    unknown += [f"{where}.{key}" for key in value.keys() - _CALL_KEYS]
    call_id = value.get("id", "")
    if not isinstance(call_id, str):
        raise _wrong(f"{where}.id", "a string", call_id)
    return ToolCall(
        id=call_id,
        name=_name(function.get("name"), f"{where}.function.name"),
        arguments=_arguments(function.get("arguments"), f"{where}.function.arguments"),
    )


def _arguments(value: object, where: str) -> Mapping[str, object]:
    """Read the JSON text that OpenAI has here; some clients send the object itself."""
    if isinstance(value, str):
        try:
            value = load_json(value) if value.strip() else {}
        except ValueError:
            raise _wrong(where, "the JSON text of an object", value) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(where, "the JSON text of an object", value)
    return value


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _wrong(where, "1 to 128 letters, digits, dots, underscores and dashes", value)
    return value


def _wrong(where: str, expected: str, value: object) -> RequestError:
    return RequestError(f"{where} must be {expected}, got {describe(value)}", param=shorten(where))
