"""What the two clients share about replies: reading them, mapping failures to errors, and when to retry.

Nothing here does I/O; `_sync` and `_async` differ in that alone.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx

from draftline_client._call import Call
from draftline_client._fields import Envelope, parse_object
from draftline_client._rate_limits import parse_rate_limits
from draftline_client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    DraftlineClientError,
    ErrorDetail,
    ProtocolError,
    status_error_class,
)

T = TypeVar("T")

MAX_BODY_BYTES = 256 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
MAX_MESSAGE_CHARS = 4096
MAX_RETRY_AFTER = 60.0  # seconds; a server that asks for more is tried again after this
PROBE_TIMEOUT = 5.0  # seconds
DEFAULT_MAX_RETRIES = 2

_FIRST_DELAY, _MAX_DELAY = 0.5, 8.0  # seconds of exponential back-off
_REFUSED = frozenset({408, 429, 503})  # the server did not begin the work
_TRANSIENT = _REFUSED | {502, 504}  # a gateway failed; whether the work was done is not known
_QUEUE_TIMEOUT = "queue_timeout"  # the code of the 503 for max_queue_ms
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def should_retry(call: Call[object], failure: DraftlineClientError) -> bool:
    """Tell whether the call may be sent again: a generation only if it certainly did not begin.

    One that waited as long as its max_queue_ms allows has done what was asked.
    """
    if isinstance(failure, APIConnectionError):
        return call.is_repeatable or not failure.request_sent
    if isinstance(failure, APIStatusError) and failure.code != _QUEUE_TIMEOUT:
        return failure.status_code in (_TRANSIENT if call.is_repeatable else _REFUSED)
    return False


def retry_delay(failure: DraftlineClientError, attempt: int) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, counted from 0.

    What the server asks for, bounded; else exponential with jitter, so that clients that failed together
    do not return together.
    """
    if isinstance(failure, APIStatusError) and failure.retry_after is not None:
        return min(failure.retry_after, MAX_RETRY_AFTER)
    ceiling = min(_FIRST_DELAY * 2.0 ** min(attempt, 10), _MAX_DELAY)
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing


def checked_max_retries(value: int) -> int:
    """Return `value`, or raise ValueError when it is not a number of retries."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"max_retries must be an integer of at least 0, got {value!r}")
    return value


@contextmanager
def transport_errors(request: httpx.Request) -> Iterator[None]:
    """Turn what httpx raises while sending or reading into this library's errors."""
    try:
        yield
    except httpx.RequestError as error:
        raise _from_httpx(error, request) from error


def _from_httpx(error: httpx.RequestError, request: httpx.Request) -> DraftlineClientError:
    url = request.url
    place = f"{request.method} {url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    cause = str(error) or type(error).__name__
    if isinstance(error, httpx.DecodingError | httpx.TooManyRedirects):
        return ProtocolError(f"{place}: {cause}")
    request_sent = not isinstance(error, _NEVER_SENT)
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError(f"{place}: timed out ({type(error).__name__})", request_sent=request_sent)
    return APIConnectionError(f"{place}: {cause}", request_sent=request_sent)


class BoundedBody:
    """Collects a reply's bytes up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self.is_truncated = False

    def add(self, data: bytes) -> bool:
        """Take the next bytes; return False when the limit is passed and the rest is not wanted."""
        room = self._limit - len(self._data)
        self._data += data[:room]
        self.is_truncated = len(data) > room
        return not self.is_truncated

    def content(self) -> bytes:
        """Return what was kept."""
        return bytes(self._data)


def parse_reply(call: Call[T], response: httpx.Response, body: BoundedBody) -> T:
    """Read a whole reply; raises ProtocolError when it is not what `call` expects."""
    envelope = envelope_of(response)
    if body.is_truncated:
        message = f"the reply is longer than {MAX_BODY_BYTES} bytes"
        raise ProtocolError(message, request_id=envelope.request_id)
    return call.parse(parse_object(body.content(), envelope=envelope))


def envelope_of(response: httpx.Response) -> Envelope:
    """Return what the headers say."""
    return Envelope(request_id=request_id_of(response), rate_limits=parse_rate_limits(response.headers))


def request_id_of(response: httpx.Response) -> str | None:
    """Return the X-Request-Id header."""
    value: str | None = response.headers.get("X-Request-Id")
    return value


def status_error(response: httpx.Response, body: BoundedBody) -> APIStatusError:
    """Build the error of a reply that is not 2xx; its body may be anything."""
    status_code = response.status_code
    return status_error_class(status_code)(
        error_detail(body.content(), f"the server answered {status_code} {response.reason_phrase}".rstrip()),
        status_code=status_code,
        request_id=request_id_of(response),
        retry_after=parse_retry_after(response.headers, now=time.time()),
        rate_limits=parse_rate_limits(response.headers),
    )


def error_detail(body: bytes, summary: str) -> ErrorDetail:
    """Read an error body of any shape; `summary` is the message where it has none."""
    try:
        fields = parse_object(body).extra()
    except ProtocolError:
        excerpt = _printable(body[:1000].decode("utf-8", "replace"))[:200]
        return ErrorDetail(message=f"{summary}: {excerpt}" if excerpt else summary)
    error = fields.get("error") or fields
    if isinstance(error, Mapping):
        return _detail_from(error, fields.get("detail") or summary)
    return _detail_from({}, error)


def _printable(text: str) -> str:
    """Return the text on one line and without what would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _detail_from(error: Mapping[str, object], fallback: object) -> ErrorDetail:
    def text(name: str) -> str | None:
        value = error.get(name)
        return None if value is None else str(value)[:MAX_MESSAGE_CHARS]

    message = text("message") or str(fallback)[:MAX_MESSAGE_CHARS]
    return ErrorDetail(message=message, type=text("type"), param=text("param"), code=text("code"))


def parse_retry_after(headers: httpx.Headers, *, now: float) -> float | None:
    """Return the seconds that Retry-After asks for, never negative; None when it says nothing usable.

    A date is measured against the reply's own Date, so that clocks need not agree; `now` is Unix time.
    """
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value, sent=_unix_time(headers.get("Date", "")), now=now)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(http_date: str, *, sent: float | None, now: float) -> float | None:
    when = _unix_time(http_date)
    return None if when is None else max(when - (now if sent is None else sent), 0.0)


def _unix_time(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
