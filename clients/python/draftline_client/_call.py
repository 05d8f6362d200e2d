"""A request of the API: how its body is made and encoded, and how often it may be sent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from draftline_client._fields import Fields
from draftline_client.options import NOT_GIVEN, CallOptions, NotGiven, Timeout
from draftline_client.types import ChatMessage, ResponseItem, ResponsePart

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T_co]):
    """A request of the API, ready to be sent as often as it takes."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    parse: Callable[[Fields], T_co]  # reads the reply, or one event of a streamed one
    is_repeatable: bool  # costs nothing much to run twice, so it is resent even if it may have arrived
    is_stream: bool = False
    content: bytes | None = field(default=None, repr=False)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a key
    timeout: Timeout | NotGiven = NOT_GIVEN


def get(path: str, parse: Callable[[Fields], T_co], options: CallOptions) -> Call[T_co]:
    """Return a GET; raises TypeError for options that need a body."""
    return _without_body("GET", path, parse, options, is_repeatable=True)


def delete(path: str, options: CallOptions) -> Call[None]:
    """Return a DELETE.

    It is not resent where it may have arrived: the second would be answered that there is nothing to delete.
    """
    return _without_body("DELETE", path, lambda _: None, options, is_repeatable=False)


def _without_body(
    method: Literal["GET", "DELETE"],
    path: str,
    parse: Callable[[Fields], T_co],
    options: CallOptions,
    *,
    is_repeatable: bool,
) -> Call[T_co]:
    given(options, CallOptions.__optional_keys__)
    if options.get("extra_body"):
        raise TypeError(f"{method} {path} has no body to put extra_body into")
    return Call(
        method=method,
        path=path,
        parse=parse,
        is_repeatable=is_repeatable,
        extra_headers=options.get("extra_headers", {}),
        timeout=options.get("timeout", NOT_GIVEN),
    )


def post(
    path: str,
    fields: Mapping[str, object],
    options: CallOptions,
    parse: Callable[[Fields], T_co],
    *,
    stream: bool = False,
    is_repeatable: bool = False,
) -> Call[T_co]:
    """Return a POST of `fields` and extra_body; raises ValueError or TypeError naming a field."""
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


def given(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, object]:
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


def _item(item: ResponseItem | ResponsePart) -> dict[str, object]:
    """Return an item of a response's output as it came, but for log probabilities."""
    own = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    dropped = ("extra", "logprobs")
    return {**{k: v for k, v in own.items() if k not in dropped and v is not None}, **item.extra}


def _plain(value: object) -> object:
    """Return what JSON can hold for the collections it does not know."""
    if isinstance(value, ChatMessage):
        return _message(value)
    if isinstance(value, ResponseItem | ResponsePart):
        return _item(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
