"""What happens around every request: its id, its key, its log line, and an answer when all else fails."""

import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, describe
from server.api.usage import Usage
from server.auth import PROBES, KeyRing, needs_key
from server.logs import ACCESS_FORMAT, GENERATION_FORMAT, access_logger
from server.metrics import ServerMetrics

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""Status in logs and metrics when nobody was left to answer; the number is nginx's."""

_SCOPE_KEY = "draftline.request"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_QUIET_PATHS = PROBES | {"/metrics"}
_MAX_LOGGED_PATH = 200


@dataclass(kw_only=True)
class RequestContext:
    """What one request's log line needs; endpoints fill in the token counts."""

    request_id: str
    started: float  # time.perf_counter()
    tenant: bytes = b""
    status: int = CLIENT_CLOSED
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def note_usage(self, usage: Usage) -> None:
        """Put a generation's token counts in the log line."""
        self.prompt_tokens = usage.prompt_tokens
        self.completion_tokens = usage.completion_tokens
        self.cached_tokens = usage.cached_tokens


def request_context(request: Request) -> RequestContext:
    """Return the context that RequestMiddleware made."""
    context = request.scope[_SCOPE_KEY]
    assert isinstance(context, RequestContext)
    return context


class RequestMiddleware:
    """Gives each request an id, counts and logs it, and turns a crash into a 500 in OpenAI's shape."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1:  # /v1/models/ is /v1/models
            scope["path"] = scope["path"].rstrip("/") or "/"
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _SANE_ID.fullmatch(sent_id) else f"req-{secrets.token_hex(12)}"
        context = RequestContext(request_id=request_id, started=time.perf_counter())
        scope[_SCOPE_KEY] = context
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                context.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            context.status = CLIENT_CLOSED
            self._metrics.num_disconnected += 1
        except Exception:
            logger.exception("request %s failed", request_id)
            if is_started:
                raise  # the server cuts the connection, which is the only signal left
            error = ApiError(
                500, "internal error; the server's log says more", kind="server_error", code="internal"
            )
            await error.response(scope["path"])(scope, receive, send_with_id)
        finally:
            self._finish(scope, context)

    def _finish(self, scope: Scope, context: RequestContext) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.count_response(route, context.status)
        is_probe = scope["path"] in _QUIET_PATHS
        access_logger.log(
            logging.DEBUG if is_probe else logging.INFO,
            ACCESS_FORMAT if context.prompt_tokens is None else GENERATION_FORMAT,
            {
                "id": context.request_id,
                "method": quote(scope["method"][:16]),
                "path": quote(scope["path"][:_MAX_LOGGED_PATH], errors="replace"),
                "status": context.status,
                "prompt_tokens": context.prompt_tokens,
                "completion_tokens": context.completion_tokens,
                "cached_tokens": context.cached_tokens,
                "seconds": round(time.perf_counter() - context.started, 6),
            },
        )


class AuthMiddleware:
    """Asks for a key where one is needed, once keys are set."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 401."""
        if scope["type"] != "http" or self._keys.is_open or not needs_key(scope["path"]):
            await self._app(scope, receive, send)
            return
        tenant = self._keys.find_tenant(_credentials(Headers(scope=scope)))
        if tenant is None:
            error = ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await error.response(scope["path"])(scope, receive, send)
            return
        scope[_SCOPE_KEY].tenant = tenant
        await self._app(scope, receive, send)


def _credentials(headers: Headers) -> bytes:
    """Return the Authorization header, or one of Anthropic's key where there is none."""
    key = headers.get("x-api-key")
    authorization = headers.get("authorization", "" if key is None else f"Bearer {key}")
    return authorization.encode("latin-1")


class HostMiddleware:
    """Refuses requests for hosts that this server is not: names that lead here by DNS rebinding."""

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = frozenset(host.lower() for host in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 403."""
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or _without_port(host) in self._allowed:  # no browser sends HTTP/1.0, which has none
            await self._app(scope, receive, send)
            return
        message = f"the host {describe(host)} is none of this server's; --allowed-host adds one"
        error = ApiError(403, message, code="host_not_allowed")
        await error.response(scope["path"])(scope, receive, send)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
