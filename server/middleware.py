"""What happens around every request: its id, its key, its log line, and an answer when all else fails."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, describe
from server.api.usage import Usage
from server.auth import ANYBODY, PROBES, Caller, KeyRing, needs_key
from server.logs import ACCESS_FORMAT, GENERATION_FORMAT, access_logger
from server.metrics import ServerMetrics
from server.quota import Lease, Quota
from server.tracing import Timings, TracedRequest, Tracing

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
    caller: Caller = ANYBODY
    on_end: list[Callable[[], None]] = field(default_factory=list)  # called once it is answered
    lease: Lease | None = None  # what it holds of the caller's quota
    status: int = CLIENT_CLOSED
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    timings: Timings | None = None

    @property
    def tenant(self) -> bytes:
        """Whose prefixes it may share, and whose turns it takes."""
        return self.caller.tenant

    def start(self, *, num_choices: int, num_prompt_tokens: int) -> None:
        """Count what it asks for; raises ApiError 429, RequestError where its key's limits forbid that."""
        if self.lease is not None:
            self.lease.start(num_choices=num_choices, num_prompt_tokens=num_prompt_tokens)

    def note_usage(self, usage: Usage, timings: Timings | None = None) -> None:
        """Put a generation's token counts in the log line, and its times in the trace."""
        self.timings = timings
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

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

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
            for callback in context.on_end:
                callback()
            self._finish(scope, context)

    def _finish(self, scope: Scope, context: RequestContext) -> None:
        route = getattr(scope.get("route"), "path", "other")
        if self._tracing is not None and scope["path"] not in _QUIET_PATHS:
            self._tracing.record(_traced(scope, route, context))
        self._metrics.count_response(route, context.status)
        if context.prompt_tokens is not None:
            self._metrics.count_tokens(
                context.caller.name,
                prompt=context.prompt_tokens,
                completion=context.completion_tokens or 0,
            )
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
                "key": context.caller.name,
                "seconds": round(time.perf_counter() - context.started, 6),
            },
        )


def _traced(scope: Scope, route: str, context: RequestContext) -> TracedRequest:
    return TracedRequest(
        method=scope["method"][:16],
        route=route,
        status=context.status,
        request_id=context.request_id,
        started=context.started,
        ended=time.perf_counter(),
        headers=Headers(scope=scope),
        prompt_tokens=context.prompt_tokens,
        completion_tokens=context.completion_tokens,
        timings=context.timings,
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
        caller = self._keys.find(_credentials(Headers(scope=scope)))
        if caller is None:
            error = ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await error.response(scope["path"])(scope, receive, send)
            return
        scope[_SCOPE_KEY].caller = caller
        if caller.quota is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            await self._within(caller.quota, scope, receive, send)

    async def _within(self, quota: Quota, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request within the limits of its key, or answer 429; every answer says what is left."""

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *quota.headers()]
            await send(message)

        context: RequestContext = scope[_SCOPE_KEY]
        try:
            context.lease = quota.begin()
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send_with_limits)
            return
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            context.lease.end(context.completion_tokens or 0)


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
