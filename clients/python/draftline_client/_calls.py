"""One call of each kind: what is sent, and how its reply is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from draftline_client import _parse
from draftline_client._fields import Fields
from draftline_client.options import (
    NOT_GIVEN,
    CallOptions,
    ChatOptions,
    CompletionOptions,
    DetokenizeOptions,
    Message,
    NotGiven,
    Prompt,
    Timeout,
    TokenizeOptions,
)
from draftline_client.types import ChatMessage, Model, ModelList, Tokenization

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T_co]):
    """A request of the API, ready to be sent as often as it takes."""

    method: Literal["GET", "POST"]
    path: str
    parse: Callable[[Fields], T_co]  # reads the reply, or one event of a streamed one
    is_repeatable: bool  # costs nothing much to run twice, so it is resent even if it may have arrived
    is_stream: bool = False
    content: bytes | None = field(default=None, repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a key
    timeout: Timeout | NotGiven = NOT_GIVEN


def completion_call(
    prompt: Prompt, options: CompletionOptions, parse: Callable[[Fields], T_co], *, stream: bool
) -> Call[T_co]:
    """POST /v1/completions."""
    fields = {"prompt": prompt, **_given(options, CompletionOptions.__optional_keys__)}
    return _post("/v1/completions", fields, options, parse, stream=stream)


def chat_call(
    messages: Sequence[Message], options: ChatOptions, parse: Callable[[Fields], T_co], *, stream: bool
) -> Call[T_co]:
    """POST /v1/chat/completions."""
    fields = {"messages": messages, **_given(options, ChatOptions.__optional_keys__)}
    return _post("/v1/chat/completions", fields, options, parse, stream=stream)


def tokenize_call(
    text: str | NotGiven, messages: Sequence[Message] | NotGiven, options: TokenizeOptions
) -> Call[Tokenization]:
    """POST /tokenize; raises TypeError unless exactly one of text and messages is given."""
    if isinstance(text, NotGiven) == isinstance(messages, NotGiven):
        raise TypeError("tokenize() takes either text or messages")
    subject = {"prompt": text} if isinstance(messages, NotGiven) else {"messages": messages}
    fields = {**subject, **_given(options, TokenizeOptions.__optional_keys__)}
    return _post("/tokenize", fields, options, _parse.parse_tokenization, is_repeatable=True)


def detokenize_call(token_ids: Sequence[int], options: DetokenizeOptions) -> Call[str]:
    """POST /detokenize."""
    fields = {"tokens": token_ids, **_given(options, DetokenizeOptions.__optional_keys__)}
    return _post("/detokenize", fields, options, _parse.parse_text, is_repeatable=True)


def model_list_call(options: CallOptions) -> Call[ModelList]:
    """GET /v1/models."""
    return _get("/v1/models", _parse.parse_model_list, options)


def model_call(model: str, options: CallOptions) -> Call[Model]:
    """GET /v1/models/{model}; raises ValueError for an empty name, which would list the models."""
    if not model:
        raise ValueError("model must not be empty")
    return _get(f"/v1/models/{quote(model, safe='')}", _parse.parse_model, options)


def version_call(options: CallOptions) -> Call[str]:
    """GET /version."""
    return _get("/version", _parse.parse_version, options)


def probe_call(path: Literal["/health", "/ready"], timeout: Timeout) -> Call[bool]:
    """GET /health or /ready, whose status is the answer."""
    return Call(method="GET", path=path, parse=lambda _: True, is_repeatable=True, timeout=timeout)


def _get(path: str, parse: Callable[[Fields], T_co], options: CallOptions) -> Call[T_co]:
    _given(options, CallOptions.__optional_keys__)
    if options.get("extra_body"):
        raise TypeError(f"GET {path} has no body to put extra_body into")
    return Call(
        method="GET",
        path=path,
        parse=parse,
        is_repeatable=True,
        extra_headers=options.get("extra_headers", {}),
        timeout=options.get("timeout", NOT_GIVEN),
    )


def _post(
    path: str,
    fields: Mapping[str, object],
    options: CallOptions,
    parse: Callable[[Fields], T_co],
    *,
    stream: bool = False,
    is_repeatable: bool = False,
) -> Call[T_co]:
    return Call(
        method="POST",
        path=path,
        parse=parse,
        is_repeatable=is_repeatable,
        is_stream=stream,
        content=_encode(_body(fields, options.get("extra_body", {}), stream=stream)),
        extra_headers=options.get("extra_headers", {}),
        timeout=options.get("timeout", NOT_GIVEN),
    )


def _given(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, object]:
    """Return the body's part of the options; raises TypeError for a name that is not one of `names`."""
    for name in sorted(options.keys() - names):
        raise TypeError(
            f"{name!r} is no option of this call; a field newer than this library goes in extra_body"
        )
    own = CallOptions.__optional_keys__
    return {k: v for k, v in options.items() if k not in own and not isinstance(v, NotGiven)}


def _body(
    fields: Mapping[str, object], extra_body: Mapping[str, object], *, stream: bool
) -> Mapping[str, object]:
    for name in sorted(extra_body.keys() & {*fields, "stream"}):
        raise TypeError(f"extra_body holds {name!r}, which is given by its own name")
    return {**fields, **({"stream": True} if stream else {}), **extra_body}


def _encode(body: Mapping[str, object]) -> bytes:
    """Return the JSON text; raises ValueError or TypeError naming the field that cannot be encoded."""
    return b"{" + b",".join(_encode_field(name, value) for name, value in body.items()) + b"}"


def _encode_field(name: str, value: object) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
        return json.dumps(name).encode() + b":" + text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be sent as JSON: {error}") from error


def _message(message: ChatMessage) -> dict[str, object]:
    """Return a message as it came."""
    fields: dict[str, object] = {"role": message.role, "content": message.content, **message.extra}
    if message.reasoning_content is not None:
        fields["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                **call.extra,
                "id": call.id,
                "function": {
                    **call.function.extra,
                    "name": call.function.name,
                    "arguments": call.function.arguments,
                },
            }
            for call in message.tool_calls
        ]
    return fields


def _plain(value: object) -> object:
    """Return what JSON can hold for the collections it does not know."""
    if isinstance(value, ChatMessage):
        return _message(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
