"""The exception tree of the client.

DraftlineClientError
├── APIConnectionError              no answer, or one cut off; `request_sent`: the server may have seen it
│   ├── APITimeoutError             no answer in time
│   │   └── StreamTimeoutError      no next chunk in time; also a StreamBrokenError
│   └── StreamBrokenError           a stream that broke before its end; `received` says what had come
├── APIStatusError                  an answer that is not 2xx, with the fields of its error body
│   ├── BadRequestError             400, `param` names the field
│   ├── AuthenticationError         401
│   ├── NotFoundError               404, an unknown model or path
│   ├── PayloadTooLargeError        413
│   ├── UnsupportedMediaTypeError   415
│   ├── RateLimitError              429, `retry_after` in seconds
│   ├── ServiceUnavailableError     503, loading or draining, `retry_after` in seconds
│   └── InternalServerError         500 and every other 5xx
├── StreamError                     the server reported an error after the stream began; `received`, too
├── ProtocolError                   an answer that is not what the API promises; `field` names the place
└── ClosedError                     a client or stream was used after it was closed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftline_client.types import RateLimits, ResponseUsage, Usage


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """The `error` object of a reply."""

    message: str  # what is wrong and what to do
    type: str | None = None  # the kind of error: invalid_request_error, rate_limit_error, ...
    param: str | None = None  # the request field at fault
    code: str | None = None  # the error itself: context_length_exceeded, request_cancelled, ...


@dataclass(frozen=True, kw_only=True)
class Received:
    """What had come of a streamed reply when it broke: enough to go on from there.

    A completion goes on from `prompt + text`; with `return_token_ids`, exactly, from
    `[*prompt_token_ids, *token_ids]`. An answer goes on with its text as the last message, of the role
    assistant, and `continue_final_message=True`.
    """

    text: str  # of the first choice
    texts: tuple[str, ...]  # of every choice
    num_chunks: int  # that were read
    request_id: str | None  # the X-Request-Id header of the stream
    usage: Usage | ResponseUsage | None  # the last that was seen; it comes at the end
    finish_reasons: tuple[str | None, ...]  # of every choice; None where it was not complete
    prompt_token_ids: tuple[int, ...] = ()  # of the first choice, with return_token_ids
    token_ids: tuple[int, ...] = ()  # of the first choice, with return_token_ids


class DraftlineClientError(Exception):
    """Base class of every error that the client raises on purpose; `message` says what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling the constructor, whose arguments differ from class to class."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[DraftlineClientError], args: tuple[Any, ...], state: dict[str, Any]
) -> DraftlineClientError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class APIConnectionError(DraftlineClientError):
    """No answer came, or its end is missing.

    `request_sent` is False when it is certain that the server never saw the request.
    """

    def __init__(self, message: str, *, request_sent: bool) -> None:
        super().__init__(message)
        self.request_sent = request_sent


class APITimeoutError(APIConnectionError):
    """The server did not answer within the timeout."""


class StreamBrokenError(APIConnectionError):
    """A stream ended before the reply did; `received` says what had come until then.

    It is never sent again by itself: what was received was perhaps shown already.
    """

    def __init__(self, message: str, *, received: Received) -> None:
        super().__init__(message, request_sent=True)
        self.received = received

    def __str__(self) -> str:
        return (
            f"{self.message} (after {self.received.num_chunks} chunks, request id {self.received.request_id})"
        )


class StreamTimeoutError(StreamBrokenError, APITimeoutError):
    """The next chunk of a stream did not come within the timeout."""


class _ReportedError(DraftlineClientError):
    """An error that the server itself described.

    `type`, `param` and `code` are those of its error body, None where it has none; `request_id` is the
    X-Request-Id header, by which the server's log calls the request.
    """

    def __init__(self, detail: ErrorDetail, *, request_id: str | None) -> None:
        super().__init__(detail.message)
        self.type = detail.type
        self.param = detail.param
        self.code = detail.code
        self.request_id = request_id

    def _facts(self) -> list[str]:
        named = {"type": self.type, "param": self.param, "code": self.code, "request id": self.request_id}
        return [f"{name} {value}" for name, value in named.items() if value is not None]

    def __str__(self) -> str:
        facts = ", ".join(self._facts())
        return f"{self.message} ({facts})" if facts else self.message


class APIStatusError(_ReportedError):
    """An answer with another `status_code` than 2xx.

    `retry_after` is what the server asks to wait, in seconds; `rate_limits` what is left of the API key's
    limits, if it has any.
    """

    def __init__(
        self,
        detail: ErrorDetail,
        *,
        status_code: int,
        request_id: str | None = None,
        retry_after: float | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(detail, request_id=request_id)
        self.status_code = status_code
        self.retry_after = retry_after
        self.rate_limits = rate_limits

    def _facts(self) -> list[str]:
        return [f"HTTP {self.status_code}", *super()._facts()]


class BadRequestError(APIStatusError):
    """400: the request can never succeed; `param` names the field."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class NotFoundError(APIStatusError):
    """404: no such model, or no such path."""


class PayloadTooLargeError(APIStatusError):
    """413: the request body is over the server's limit."""


class UnsupportedMediaTypeError(APIStatusError):
    """415: the request body has a content type the server does not read."""


class RateLimitError(APIStatusError):
    """429: the queue is full or the key is over its limit."""


class ServiceUnavailableError(APIStatusError):
    """503: the server is loading, draining or stalled."""


class InternalServerError(APIStatusError):
    """500, and every 5xx without a class of its own."""


class StreamError(_ReportedError):
    """The server reported an error after the stream began; `received` says what had come until then."""

    def __init__(self, detail: ErrorDetail, *, request_id: str | None, received: Received) -> None:
        super().__init__(detail, request_id=request_id)
        self.received = received


class ProtocolError(DraftlineClientError):
    """An answer that is not what the API promises.

    `field` is the path of the offending field, if any; `request_id` the X-Request-Id header; `received`
    what had come before, in a stream.
    """

    def __init__(self, message: str, *, field: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message if request_id is None else f"{message} (request id {request_id})")
        self.field = field
        self.request_id = request_id
        self.received: Received | None = None


class ClosedError(DraftlineClientError):
    """A client or a stream was used after it was closed."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    404: NotFoundError,
    413: PayloadTooLargeError,
    415: UnsupportedMediaTypeError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}


def status_error_class(status_code: int) -> type[APIStatusError]:
    """Return the class for a status; statuses without one share APIStatusError."""
    unnamed = InternalServerError if status_code >= 500 else APIStatusError
    return _BY_STATUS.get(status_code, unnamed)
