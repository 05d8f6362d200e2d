"""The `input` of a response: text, or items, to the messages of a chat."""

from engine.interface.errors import RequestError
from server.api.errors import describe, shorten
from server.api.json_object import Json, wrong_type
from server.api.limits import MAX_MESSAGES

_TEXT_PARTS = ("input_text", "output_text", "reasoning_text", "text")


def read_input(value: object) -> list[Json]:
    """Return the messages of a string or a list of items; raises RequestError."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise wrong_type("input", "a string or a list of items", value)
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise RequestError(f"input must have 1 to {MAX_MESSAGES} items, got {len(value)}", param="input")
    messages: list[Json] = []
    for number, item in enumerate(value):
        _add_item(messages, item, f"input[{number}]")
    if any("role" not in message for message in messages):
        raise RequestError("input: a reasoning item must be followed by what was answered", param="input")
    return messages


def _add_item(messages: list[Json], item: object, where: str) -> None:
    if not isinstance(item, dict):
        raise wrong_type(where, "an object", item)
    kind = item.get("type", "message")
    if kind == "message":
        _add(
            messages, {"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}
        )
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _add(messages, {"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{where}.output")
        _add(messages, {"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind == "reasoning":
        messages.append({"reasoning_content": _content(item.get("content") or "", f"{where}.content")})
    else:
        raise RequestError(
            f"{where}.type must be message, function_call, function_call_output or reasoning, "
            f"got {describe(kind)}",
            param=shorten(f"{where}.type"),
        )


def _add(messages: list[Json], message: Json) -> None:
    """Add a message; thoughts, text and calls that follow each other are one message of the assistant."""
    last = messages[-1] if messages else None
    if last is not None and "role" not in last:  # a thought that waits for its message
        messages[-1] = {**last, **message}
    elif last is not None and last["role"] == message["role"] == "assistant" and "tool_calls" in message:
        last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
    else:
        messages.append(message)


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(where, "a string or a list of parts", value)
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _part(value: object, where: str) -> str:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object", value)
    kind = value.get("type")
    name = "refusal" if kind == "refusal" else "text"
    if kind not in (*_TEXT_PARTS, "refusal"):
        raise RequestError(
            f"{where}.type must be input_text, got {describe(kind)}: the model reads text only",
            param=shorten(f"{where}.type"),
        )
    text = value.get(name)
    if not isinstance(text, str):
        raise wrong_type(f"{where}.{name}", "a string", text)
    return text
