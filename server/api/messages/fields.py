"""From the body of a message to the fields of a chat completion."""

from collections.abc import Mapping

from engine.interface.errors import RequestError
from server.api.errors import describe
from server.api.json_object import Json, optional_member, wrong_type
from server.api.known_fields import refuse_where_set
from server.api.messages.input_messages import read_messages, read_system

_RENAMED = {"stop_sequences": "stop"}
_TRANSLATED = (
    *("messages", "system", "tools", "tool_choice", "metadata", "thinking", "output_config"),
    *("output_format", "cache_control", "inference_geo", "speed", "service_tier"),
)
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "context_management": (),
    "diagnostics": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "n": (1,),
    "logprobs": (False,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_provenance": (False,),
    "stream_options": ({},),
}
"""Fields that are not supported, or that a message has no place for, and the values that ask for nothing."""

_EFFORTS = {"max": "xhigh"}


def translate_message(body: Json) -> Json:
    """Return the fields of a chat completion; raises RequestError."""
    refuse_where_set(body, _REFUSED)
    known = {*_RENAMED, *_TRANSLATED, *_REFUSED}
    chat: Json = {name: value for name, value in body.items() if name not in known}
    chat |= {new: body[old] for old, new in _RENAMED.items() if old in body}
    messages = [*read_system(body.get("system")), *read_messages(body.get("messages"))]
    chat["messages"] = messages
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    metadata = optional_member(body, "metadata", dict, "an object") or {}
    if metadata.get("user_id") is not None:
        chat["user"] = metadata["user_id"]
    return chat | _tools(body) | _output(body) | _thinking(body)


def _tools(body: Json) -> Json:
    tools = optional_member(body, "tools", list, "a list of tools")
    chat: Json = {}
    if tools is not None:
        chat["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    choice = optional_member(body, "tool_choice", dict, "an object") or {}
    if choice:
        chat["tool_choice"] = _tool_choice(choice)
    if choice.get("disable_parallel_tool_use") is not None:
        chat["parallel_tool_calls"] = choice["disable_parallel_tool_use"] is False
    return chat


def _tool(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    if value.get("type") not in (None, "custom"):
        raise RequestError(
            f"{where}.type must be custom, got {describe(value['type'])}: this server runs no tools",
            param=f"{where}.type",
        )
    function = {"name": value.get("name"), "parameters": value.get("input_schema")}
    function |= {key: value[key] for key in ("description", "strict") if value.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Json) -> object:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    modes = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in modes:
        raise wrong_type("tool_choice.type", "auto, any, tool or none", kind)
    return modes[kind]


def _output(body: Json) -> Json:
    """Read the format of the answer and how much effort it is worth."""
    config = optional_member(body, "output_config", dict, "an object") or {}
    form = config.get("format") or body.get("output_format")
    chat: Json = {}
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise wrong_type("output_config.format", 'an object {"type": "json_schema", "schema": ...}', form)
        schema = {"name": "answer", "schema": form.get("schema")}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    effort = config.get("effort")
    if effort is not None:
        chat["reasoning_effort"] = _EFFORTS.get(effort, effort) if isinstance(effort, str) else effort
    return chat


def _thinking(body: Json) -> Json:
    thinking = optional_member(body, "thinking", dict, "an object") or {}
    kind = thinking.get("type")
    if kind == "enabled":
        return {"reasoning": {"max_tokens": thinking.get("budget_tokens")}}
    if kind == "disabled":
        return {"reasoning": {"effort": "none"}}
    if kind not in (None, "adaptive"):
        raise wrong_type("thinking.type", "enabled, disabled or adaptive", kind)
    return {}
