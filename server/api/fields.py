"""Parsers of the fields that JSON schema types alone cannot express: prompts, messages, stops, biases."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from engine.interface.errors import RequestError
from server.answers import ToolCall
from server.api.errors import describe, shorten
from server.api.limits import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORD_CHARS,
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_EMBEDDING_INPUTS,
    MAX_LOGIT_BIAS,
    MAX_MESSAGES,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from server.api.tool_fields import parse_tool_calls

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
EFFORTS = get_args(Effort)
ROLES = ("system", "developer", "user", "assistant", "tool")

_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content"})
_UNSUPPORTED_MESSAGE_KEYS = ("function_call", "audio")
_PART_KEYS = frozenset({"type", "text", "refusal"})
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_MAX_BIAS = 100.0


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
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning_content: str | None = None
    unknown_keys: tuple[str, ...] = ()

    def for_template(self, *, developer_role: str) -> dict[str, object]:
        """Return the mapping that chat templates read; `developer_role` replaces the role developer."""
        message: dict[str, object] = {
            "role": developer_role if self.role == "developer" else self.role,
            "content": self.content,
        }
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(frozen=True, kw_only=True)
class RequestedReasoning:
    """The field `reasoning`."""

    max_tokens: int | None = None
    effort: str | None = None
    unknown_keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a stream carries besides text."""

    include_usage: bool = False
    unknown_keys: tuple[str, ...] = ()


def parse_prompt(value: object) -> tuple[Prompt, ...]:
    """Read a string, a list of strings, a list of token ids or a list of lists of token ids."""
    return _texts(value, "prompt", things="prompts", limit=MAX_CHOICES)


def parse_one_prompt(value: object) -> Prompt:
    """Read a string or a list of token ids."""
    if not isinstance(value, str | list):
        raise _wrong("prompt", "a string or a list of token ids", value)
    return _one_of_many(value, "prompt")


def parse_input(value: object) -> tuple[Prompt, ...]:
    """Read the texts of /v1/embeddings, which are given as prompts are."""
    return _texts(value, "input", things="texts", limit=MAX_EMBEDDING_INPUTS)


def parse_stop(value: object) -> tuple[str, ...]:
    """Read one stop string or a list of them."""
    strings = [value] if isinstance(value, str) else value
    return _strings(strings, "stop", max_strings=MAX_STOP_STRINGS, max_chars=MAX_STOP_STRING_CHARS)


def parse_bad_words(value: object) -> tuple[str, ...]:
    """Read a list of strings, possibly empty."""
    return _strings(value, "bad_words", max_strings=MAX_BAD_WORDS, max_chars=MAX_BAD_WORD_CHARS)


def parse_stop_token_ids(value: object) -> frozenset[int]:
    """Read a list of token ids, possibly empty."""
    return frozenset() if value == [] else _token_id_set(value, "stop_token_ids", MAX_STOP_TOKEN_IDS)


def parse_allowed_token_ids(value: object) -> frozenset[int]:
    """Read a list of at least one token id."""
    return _token_id_set(value, "allowed_token_ids", MAX_ALLOWED_TOKEN_IDS)


def parse_logit_bias(value: object) -> Mapping[int, float]:
    """Read OpenAI's object of token ids, which JSON makes strings, and numbers from -100 to 100."""
    if not isinstance(value, dict):
        raise _wrong("logit_bias", "an object of token ids and numbers", value)
    if len(value) > MAX_LOGIT_BIAS:
        raise _too_many("logit_bias", len(value), "tokens", MAX_LOGIT_BIAS)
    return {_bias_token_id(key): _bias(key, bias) for key, bias in value.items()}


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


def parse_prediction(value: object) -> str:
    """Read OpenAI's `{"type": "content", "content": text or text parts}`."""
    if not isinstance(value, dict) or value.get("type") != "content":
        raise _wrong("prediction", 'an object {"type": "content", "content": ...}', value)
    return _content(value.get("content"), "prediction.content", [])


def parse_reasoning(value: object) -> RequestedReasoning:
    """Read `{"max_tokens": 512, "effort": "low"}`."""
    if not isinstance(value, dict):
        raise _wrong("reasoning", "an object", value)
    max_tokens, effort = value.get("max_tokens"), value.get("effort")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 0):
        raise _wrong("reasoning.max_tokens", "an integer of at least 0", max_tokens)
    if effort is not None and effort not in EFFORTS:
        raise _wrong("reasoning.effort", f"one of {', '.join(EFFORTS)}", effort)
    unknown = [key for key, item in value.items() if key not in ("max_tokens", "effort") and item is not None]
    return RequestedReasoning(
        max_tokens=max_tokens, effort=effort, unknown_keys=tuple(f"reasoning.{key}" for key in unknown)
    )


def parse_template_variables(value: object) -> Mapping[str, object]:
    """Read an object of variables for a chat template."""
    if not isinstance(value, dict):
        raise _wrong("chat_template_kwargs", "an object", value)
    return value


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


def _bias_token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key):
        raise RequestError(
            f"the keys of logit_bias must be token ids, got {describe(key)}", param="logit_bias"
        )
    return int(key)


def _bias(key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_BIAS <= value <= _MAX_BIAS:
        return float(value)
    raise RequestError(
        f"logit_bias of token {key} must be a number between {-_MAX_BIAS:g} and {_MAX_BIAS:g}, "
        f"got {describe(value)}",
        param="logit_bias",
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
    known = _MESSAGE_KEYS.union(_UNSUPPORTED_MESSAGE_KEYS, ("refusal",) if role == "assistant" else ())
    unknown = [f"{where}.{key}" for key in value.keys() - known if value[key] is not None]
    calls = parse_tool_calls(value.get("tool_calls"), f"{where}.tool_calls", unknown)
    if calls and role != "assistant":
        raise RequestError(f"{where}.tool_calls: only an assistant calls tools", param=f"{where}.tool_calls")
    content = value.get("content")
    if content is None and role == "assistant":  # OpenAI's null beside tool_calls or a refusal
        content = value.get("refusal") or ""
    return ChatMessage(
        role=role,
        content=_content(content, f"{where}.content", unknown),
        name=_optional_string(value.get("name"), f"{where}.name"),
        tool_call_id=_optional_string(value.get("tool_call_id"), f"{where}.tool_call_id"),
        tool_calls=calls,
        reasoning_content=_optional_string(value.get("reasoning_content"), f"{where}.reasoning_content"),
        unknown_keys=tuple(unknown),
    )


def _content(value: object, where: str, unknown: list[str]) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(where, "a string or a list of text parts", value)
    return "".join(_text_part(part, f"{where}[{i}]", unknown) for i, part in enumerate(value))


def _text_part(value: object, where: str, unknown: list[str]) -> str:
    if not isinstance(value, dict):
        raise _wrong(where, 'an object {"type": "text", "text": ...}', value)
    kind = value.get("type")
    if kind not in ("text", "refusal"):
        raise RequestError(
            f"{where}.type must be text, got {describe(kind)}: the model reads text only",
            param=f"{where}.type",
        )
    text = value.get(kind)
    if not isinstance(text, str):
        raise _wrong(f"{where}.{kind}", "a string", text)
    unknown += [f"{where}.{key}" for key in value.keys() - _PART_KEYS]
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


def _texts(value: object, where: str, *, things: str, limit: int) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (_text_prompt(value, where),)
    if not isinstance(value, list):
        raise _wrong(where, "a string, a list of strings or token ids", value)
    if not value:
        raise RequestError(f"{where} must not be empty", param=where)
    if isinstance(value[0], str | list):
        if len(value) > limit:
            raise _too_many(where, len(value), things, limit)
        return tuple(_one_of_many(item, f"{where}[{i}]") for i, item in enumerate(value))
    return (Prompt(token_ids=_token_ids(value, where)),)


def _text_prompt(value: str, where: str) -> Prompt:
    if not value:
        raise RequestError(f"{where} must not be empty", param=where)
    return Prompt(text=value)


def _strings(value: object, where: str, *, max_strings: int, max_chars: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list of strings", value)
    if len(value) > max_strings:
        raise _too_many(where, len(value), "strings", max_strings)
    for string in value:
        if not isinstance(string, str):
            raise _wrong(where, "a list of strings", string)
        if not 1 <= len(string) <= max_chars:
            raise RequestError(
                f"each string of {where} must have 1 to {max_chars} characters, got {len(string)}",
                param=where,
            )
    return tuple(value)


def _token_id_set(value: object, where: str, limit: int) -> frozenset[int]:
    if isinstance(value, list) and len(value) > limit:
        raise _too_many(where, len(value), "ids", limit)
    return frozenset(_token_ids(value, where))


def _token_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list of token ids", value)
    if not value:
        raise RequestError(f"{where} must not be empty", param=where)
    for i, token_id in enumerate(value):
        if type(token_id) is not int:  # a bool is an int to isinstance
            raise _wrong(f"{where}[{i}]", "a token id", token_id)
    return tuple(value)


def _too_many(where: str, count: int, things: str, limit: int) -> RequestError:
    return RequestError(f"{where} has {count} {things}, the limit is {limit}", param=where)


def _wrong(where: str, expected: str, value: object) -> RequestError:
    return RequestError(f"{where} must be {expected}, got {describe(value)}", param=shorten(where))
