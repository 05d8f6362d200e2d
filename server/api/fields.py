"""Parsers of the fields that JSON schema types alone cannot express: prompts, messages, stops."""

from dataclasses import dataclass

from engine.errors import RequestError
from server.api.errors import describe, shorten
from server.api.limits import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

ROLES = ("system", "developer", "user", "assistant", "tool")

_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_call_id"})
_UNSUPPORTED_MESSAGE_KEYS = ("tool_calls", "function_call", "audio", "refusal")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt as the client gave it: text or token ids, never both."""

    text: str | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Characters or tokens, whichever it has."""
        return len(self.token_ids) if self.text is None else len(self.text)


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One message, its text parts joined."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    unknown_keys: tuple[str, ...] = ()

    def for_template(self, *, developer_role: str) -> dict[str, str]:
        """Return the mapping that chat templates read; `developer_role` replaces the role developer."""
        message = {
            "role": developer_role if self.role == "developer" else self.role,
            "content": self.content,
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream carries besides text."""

    include_usage: bool = False
    unknown_keys: tuple[str, ...] = ()


def parse_prompt(value: object) -> tuple[Prompt, ...]:
    """Read a string, a list of strings, a list of token ids or a list of lists of token ids."""
    if isinstance(value, str):
        return (_text_prompt(value, "prompt"),)
    if not isinstance(value, list):
        raise _wrong("prompt", "a string, a list of strings or token ids", value)
    if not value:
        raise RequestError("prompt must not be empty", param="prompt")
    if isinstance(value[0], str | list):
        if len(value) > MAX_CHOICES:
            raise RequestError(f"prompt has {len(value)} prompts, the limit is {MAX_CHOICES}", param="prompt")
        return tuple(_one_of_many(item, f"prompt[{i}]") for i, item in enumerate(value))
    return (Prompt(token_ids=_token_ids(value, "prompt")),)


def parse_stop(value: object) -> tuple[str, ...]:
    """Read one stop string or a list of them."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise _wrong("stop", "a string or a list of strings", value)
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"stop has {len(strings)} strings, the limit is {MAX_STOP_STRINGS}", param="stop")
    for string in strings:
        if not isinstance(string, str):
            raise _wrong("stop", "a string or a list of strings", string)
        if not 1 <= len(string) <= MAX_STOP_STRING_CHARS:
            raise RequestError(
                f"a stop string must have 1 to {MAX_STOP_STRING_CHARS} characters, got {len(string)}",
                param="stop",
            )
    return tuple(strings)


def parse_stop_token_ids(value: object) -> frozenset[int]:
    """Read a list of token ids, possibly empty."""
    if value == []:
        return frozenset()
    if isinstance(value, list) and len(value) > MAX_STOP_TOKEN_IDS:
        raise RequestError(
            f"stop_token_ids has {len(value)} ids, the limit is {MAX_STOP_TOKEN_IDS}", param="stop_token_ids"
        )
    return frozenset(_token_ids(value, "stop_token_ids"))


def parse_token_ids(value: object) -> tuple[int, ...]:
    """Read the `tokens` of /detokenize, possibly none."""
    return () if value == [] else _token_ids(value, "tokens")


def parse_messages(value: object) -> tuple[ChatMessage, ...]:
    """Read the messages of a conversation."""
    if not isinstance(value, list):
        raise _wrong("messages", "a list of messages", value)
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise RequestError(
            f"messages must have 1 to {MAX_MESSAGES} entries, got {len(value)}", param="messages"
        )
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(value))


def parse_stream_options(value: object) -> StreamOptions:
    """Read `{"include_usage": true}`."""
    if not isinstance(value, dict):
        raise _wrong("stream_options", "an object", value)
    include_usage = value.get("include_usage")
    if include_usage is not None and not isinstance(include_usage, bool):
        raise _wrong("stream_options.include_usage", "true or false", include_usage)
    unknown = (key for key, option in value.items() if key != "include_usage" and option)
    return StreamOptions(
        include_usage=include_usage is True, unknown_keys=tuple(f"stream_options.{key}" for key in unknown)
    )


def _message(value: object, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise _wrong(where, "an object with role and content", value)
    role = value.get("role")
    if role not in ROLES:
        raise RequestError(
            f"{where}.role must be one of {', '.join(ROLES)}, got {describe(role)}", param=f"{where}.role"
        )
    for key in _UNSUPPORTED_MESSAGE_KEYS:
        if value.get(key):
            raise RequestError(f"{where}.{key} is not supported yet", param=f"{where}.{key}")
    known = _MESSAGE_KEYS.union(_UNSUPPORTED_MESSAGE_KEYS)
    return ChatMessage(
        role=role,
        content=_content(value.get("content"), f"{where}.content"),
        name=_optional_string(value.get("name"), f"{where}.name"),
        tool_call_id=_optional_string(value.get("tool_call_id"), f"{where}.tool_call_id"),
        unknown_keys=tuple(f"{where}.{key}" for key in value.keys() - known),
    )


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(where, "a string or a list of text parts", value)
    return "".join(_text_part(part, f"{where}[{i}]") for i, part in enumerate(value))


def _text_part(value: object, where: str) -> str:
    if not isinstance(value, dict):
        raise _wrong(where, 'an object {"type": "text", "text": ...}', value)
    if value.get("type") != "text":
        raise RequestError(
            f"{where}.type must be text, got {describe(value.get('type'))}: the model reads text only",
            param=f"{where}.type",
        )
    text = value.get("text")
    if not isinstance(text, str):
        raise _wrong(f"{where}.text", "a string", text)
    return text


def _optional_string(value: object, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong(where, "a string", value)
    return value


def _one_of_many(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        return _text_prompt(value, where)
    if isinstance(value, list):
        return Prompt(token_ids=_token_ids(value, where))
    raise _wrong(where, "a string or a list of token ids", value)


def _text_prompt(value: str, where: str) -> Prompt:
    if not value:
        raise RequestError(f"{where} must not be empty", param=where)
    return Prompt(text=value)


def _token_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list of token ids", value)
    if not value:
        raise RequestError(f"{where} must not be empty", param=where)
    for i, token_id in enumerate(value):
        if type(token_id) is not int:  # a bool is an int to isinstance
            raise _wrong(f"{where}[{i}]", "a token id", token_id)
    return tuple(value)


def _wrong(where: str, expected: str, value: object) -> RequestError:
    return RequestError(f"{where} must be {expected}, got {describe(value)}", param=shorten(where))
