"""Errors as OpenAI's bodies: `{"error": {"message", "type", "param", "code"}}`."""

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

from engine.interface.errors import (
    EngineDeadError,
    EngineRestartingError,
    EngineUnavailableError,
    NonFiniteError,
    RequestError,
    SlowReaderError,
    StepError,
)
from server.api.limits import MAX_SHOWN_CHARS

ENGINE_IS_DEAD = "the engine has failed and must be restarted"

RETRY_AFTER_UNAVAILABLE = 5
"""Seconds to wait for a server that loads, drains or is restarted, or for another one to take over."""

ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

_MAX_MESSAGE_CHARS = 500
"""A character takes at most six bytes of UTF-8 JSON, so a body stays under 4 KB."""


class ApiError(Exception):
    """An answer other than 200; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))

    def body(self) -> bytes:
        """Return the JSON body: valid UTF-8 and under 4 KB, whatever the message repeats."""
        return json.dumps({"error": self._members(self.kind)}, ensure_ascii=False).encode()

    def anthropic_body(self) -> bytes:
        """Return the JSON body as Anthropic's API has it, and `param` and `code` beside that."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return json.dumps({"type": "error", "error": self._members(kind)}, ensure_ascii=False).encode()

    def _members(self, kind: str) -> dict[str, object]:
        return {
            "message": _printable(self.message, _MAX_MESSAGE_CHARS),
            "type": kind,
            "param": None if self.param is None else _printable(self.param, MAX_SHOWN_CHARS),
            "code": self.code,
        }

    def response(self, path: str) -> Response:
        """Return the HTTP answer to a request for `path`."""
        is_anthropic = path.startswith(ANTHROPIC_PATH)
        body = self.anthropic_body() if is_anthropic else self.body()
        return Response(body, self.status, self.headers, media_type="application/json")


def to_api_error(error: Exception) -> ApiError:
    """Translate an error of the engine or the server to its HTTP answer; anything else is a 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, NonFiniteError):
        return ApiError(500, str(error), kind="server_error", code="non_finite")
    if isinstance(error, SlowReaderError):
        return ApiError(408, str(error), code="slow_reader")
    if isinstance(error, StepError):
        return ApiError(500, str(error), kind="server_error", code="step_failed")
    if isinstance(error, EngineDeadError):
        return unavailable(ENGINE_IS_DEAD, code="dead")
    if isinstance(error, EngineRestartingError):
        return unavailable(str(error), code="restarting")
    if isinstance(error, EngineUnavailableError):
        return unavailable(str(error) or "the server is not ready", code="not_ready")
    return ApiError(500, "internal error; the server's log says more", kind="server_error", code="internal")


def queue_full(message: str, *, retry_after: float) -> ApiError:
    """Return the 429 for a full queue."""
    return ApiError(
        429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after
    )


def unavailable(message: str, *, code: str) -> ApiError:
    """Return the 503 of a server that loads, drains or is stuck."""
    return ApiError(
        503, message, kind="service_unavailable_error", code=code, retry_after=RETRY_AFTER_UNAVAILABLE
    )


def shorten(text: str) -> str:
    """Return at most MAX_SHOWN_CHARS characters of `text`, marked where it was cut."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def describe(value: object) -> str:
    """Return a JSON value in a few words, for an error message; bounded whatever its size."""
    if isinstance(value, str):
        return json.dumps(shorten(value), ensure_ascii=False)
    if isinstance(value, list):
        return f"a list of {len(value)} items"
    if isinstance(value, dict):
        return "an object"
    return shorten(json.dumps(value))


def _printable(text: str, limit: int) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates do not encode
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."
