"""JSON as the server writes it: compact, UTF-8."""

import json
from collections.abc import Iterator

from starlette.responses import Response

_ITEMS_PER_PART = 256

encode_string = json.encoder.encode_basestring
"""A str as a JSON string literal, in one call into C."""


def to_json(value: object) -> bytes:
    """Return `value` as compact JSON; raises ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def to_json_in_parts(value: object) -> bytes:
    """Return what to_json() does, in many short calls into C, which keep other threads waiting no longer."""
    return b"".join(_parts(value))


def _parts(value: object) -> Iterator[bytes]:
    if isinstance(value, dict):
        separator = b"{"
        for key, member in value.items():
            yield separator + to_json(key) + b":"
            yield from _parts(member)
            separator = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and len(value) > _ITEMS_PER_PART:
        separator = b"["
        for start in range(0, len(value), _ITEMS_PER_PART):
            yield separator + to_json(value[start : start + _ITEMS_PER_PART])[1:-1]
            separator = b","
        yield b"]"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        separator = b"["
        for item in value:
            yield separator
            yield from _parts(item)
            separator = b","
        yield b"]"
    else:
        yield to_json(value)


def json_response(body: object, status: int = 200) -> Response:
    """Return `body` as a JSON answer."""
    return _response(to_json(body), status)


def large_json_response(body: object) -> Response:
    """Return `body`, which may be tens of megabytes, as a JSON answer; for a thread."""
    return _response(to_json_in_parts(body), 200)


def _response(content: bytes, status: int) -> Response:
    return Response(content, status, media_type="application/json")
