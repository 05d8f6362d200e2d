"""The `messages` and `system` of Anthropic's API to the messages of a chat."""

import json

from engine.interface.errors import RequestError
from server.api.errors import describe, shorten
from server.api.json_object import Json, wrong_type
from server.api.limits import MAX_MESSAGES


def read_system(value: object) -> list[Json]:
    """Return the system message of a string or a list of text blocks; none for null."""
    if value is None:
        return []
    return [{"role": "system", "content": _text(value, "system")}]


def read_messages(value: object) -> list[Json]:
    """Return a chat's messages: results of tools become messages of their own; raises RequestError."""
    if not isinstance(value, list):
        raise wrong_type("messages", "a list of messages", value)
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise RequestError(
            f"messages must have 1 to {MAX_MESSAGES} entries, got {len(value)}", param="messages"
        )
    messages: list[Json] = []
    for number, message in enumerate(value):
        messages += _read_message(message, f"messages[{number}]")
    return messages


def _read_message(value: object, where: str) -> list[Json]:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object with role and content", value)
    role, content, where = value.get("role"), value.get("content"), f"{where}.content"
    if role == "assistant":
        return [_assistant_message(_blocks(content, where), where)]
    if role == "system":
        return [{"role": "system", "content": _text(content, where)}]
    if role != "user":
        where = where.replace(".content", ".role")
        raise RequestError(f"{where} must be user or assistant, got {describe(role)}", param=where)
    return _user_messages(_blocks(content, where), where)


def _user_messages(blocks: list[Json], where: str) -> list[Json]:
    """Return what the user says, behind the results of the tools that it answers with."""
    results: list[Json] = []
    texts: list[str] = []
    for number, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            results.append(_tool_message(block, f"{where}[{number}]"))
        else:
            texts.append(_block_text(block, f"{where}[{number}]"))
    said: list[Json] = [{"role": "user", "content": "".join(texts)}] if texts or not results else []
    return results + said


def _tool_message(block: Json, where: str) -> Json:
    """Return the message of a result; chats have no mark of a failed one, so its text says so."""
    content = block.get("content")
    text = "" if content is None else _text(content, f"{where}.content")
    failed = block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        raise wrong_type(f"{where}.is_error", "true or false", failed)
    return {
        "role": "tool",
        "tool_call_id": block.get("tool_use_id"),
        "content": f"Error: {text}" if failed else text,
    }


def _assistant_message(blocks: list[Json], where: str) -> Json:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for number, block in enumerate(blocks):
        here = f"{where}[{number}]"
        if block.get("type") == "tool_use":
            calls.append(_call(block, here))
        elif block.get("type") == "thinking":
            thoughts.append(_string(block.get("thinking"), f"{here}.thinking"))
        elif block.get("type") != "redacted_thinking":  # encrypted for another server: no text is in it
            texts.append(_block_text(block, here))
    message: Json = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _call(block: Json, where: str) -> Json:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise wrong_type(f"{where}.input", "an object", arguments)
    function = {"name": block.get("name"), "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": block.get("id"), "type": "function", "function": function}


def _blocks(value: object, where: str) -> list[Json]:
    """Return the blocks of a content, of which a string is one."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise wrong_type(where, "a string or a list of blocks", value)
    for number, block in enumerate(value):
        if not isinstance(block, dict):
            raise wrong_type(f"{where}[{number}]", "an object", block)
    return value


def _text(value: object, where: str) -> str:
    blocks = _blocks(value, where)
    return "".join([_block_text(block, f"{where}[{number}]") for number, block in enumerate(blocks)])


def _block_text(block: Json, where: str) -> str:
    if block.get("type") != "text":
        raise RequestError(
            f"{where}.type must be text, got {describe(block.get('type'))}: the model reads text only",
            param=shorten(f"{where}.type"),
        )
    return _string(block.get("text"), f"{where}.text")


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    return value
