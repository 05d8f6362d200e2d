"""From the bytes of a request to a JSON object, with every way in which that can fail."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TypeVar

from starlette.requests import Request

from server.admission import HeldBytes
from server.api.errors import ApiError, shorten
from server.api.limits import INLINE_BYTES

READ_TIMEOUT = 60.0
"""Seconds in which the whole body must arrive; a client that trickles holds memory for nothing."""

_SAFE_FLOAT_CHARS = 16  # a point and 15 digits, all of which every double keeps

JsonObject = dict[str, object]
_T = TypeVar("_T")


async def read_body(request: Request, held: HeldBytes, *, max_size: int) -> bytes:
    """Read the body of `request`, which counts as `held` from its first byte.

    Raises ApiError 408, 413, 415 or 429, and starlette's ClientDisconnect.
    """
    _check_content_type(request)
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > max_size):
        raise _too_large(max_size)
    try:
        return await asyncio.wait_for(_collect(request, held, max_size), READ_TIMEOUT)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {READ_TIMEOUT:g} s", code="timeout") from None


async def run_sized(size: int, function: Callable[..., _T], *args: object) -> _T:
    """Call `function` here when `size` bytes or characters are few, else on a thread."""
    if size <= INLINE_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)


def parse_json_object(body: bytes) -> JsonObject:
    """Parse strict JSON: no NaN, no duplicate keys, no lone surrogates, an object at the top.

    Raises ApiError 400.
    """
    try:
        text = body.decode("utf-8")
        value = load_json(text)
    except UnicodeDecodeError as error:
        raise _bad_json(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise _bad_json(str(error)) from None
    if not isinstance(value, dict):
        raise _bad_json("the top level must be an object")
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    return value


def load_json(text: str) -> object:
    """Parse JSON without NaN and duplicate keys; raises ValueError with a short reason."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_read_float
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and integers of more than 4,300 digits
        raise ValueError(shorten(str(error))) from None


class RoundedFloat(float):
    """A number of a body that lost digits when it became a double; `text` has them all."""

    text: str


def _read_float(text: str) -> float:
    value = float(text)
    if len(text) > _SAFE_FLOAT_CHARS and math.isfinite(value) and Decimal(text) != Decimal(repr(value)):
        value = RoundedFloat(value)
        value.text = text
    return value


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        shown = shorten(content_type) or "missing"
        raise ApiError(
            415, f"content-type must be application/json, got {shown}", code="unsupported_media_type"
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise ApiError(
            415, f"content-encoding {shorten(encoding)} is not supported", code="unsupported_media_type"
        )


async def _collect(request: Request, held: HeldBytes, max_size: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_size:
            raise _too_large(max_size)
        held.grow_to(len(body))
    return bytes(body)


def _too_large(max_size: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_size} bytes", code="body_too_large")


def _bad_json(reason: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")


def _unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"a key comes twice: {shorten(twice)}")
    return members


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _check_surrogates(root: JsonObject) -> None:
    """Raise ApiError naming the top-level field whose text UTF-8 cannot express."""
    for name, member in root.items():
        for text in _texts(name, member):
            if not _encodes(text):
                raise ApiError(
                    400,
                    f"{shorten(name)} holds a lone surrogate, which is not text",
                    param=name,
                    code="invalid_value",
                )


def _texts(name: str, member: object) -> Iterable[str]:
    yield name
    stack = [member]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value.keys()
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
