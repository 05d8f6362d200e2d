"""HTTP on one connection: uvicorn's protocol, bounds on what a stranger may hold, and what it leaves out."""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.api.errors import ApiError
from server.auth import PROBES

_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FIRST_CHECK, _LAST_CHECK = 0.005, 1.0
"""Seconds between looks for a reset; they double."""

_RESERVE = 32
"""Connections beyond the limit that are heard: a probe among them gets its answer, anybody else a 429."""


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What one connection may hold and for how long, and how many there may be."""

    max_connections: int = 1024
    max_header_bytes: int = 65_536  # request line and headers together; also of a chunk's head or trailers
    max_headers: int = 128
    receipt_timeout: float = (
        20.0  # seconds from the connection, or a request's first byte, to its last header
    )
    write_timeout: float = 30.0  # seconds in which a client that is sent more than it reads must catch up


class HttpProtocol(HttpToolsProtocol):
    """Refuses headers without end, and closes connections that send or read too slowly.

    Also answers a client that ended its sending side only, as `nc -N` does. TCP says no more of such a client
    than of one that left. But a host whose program left resets the connection at the first byte, so an
    interim response (RFC 9110, section 15.2), which every HTTP/1.1 client knows, asks whether anybody is
    there. Once the response has begun, or where several requests wait in one connection, it cannot be asked:
    the end of sending is then the end, as in uvicorn.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._num_unparsed = 0  # bytes since the last headers or piece of a body were complete
        self._refusal: ApiError | None = None
        self._receipt_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; beyond the limit only probes are served, then nobody is."""
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.max_connections
        if excess > _RESERVE:
            transport.abort()
            return
        if excess > 0:
            self.app = _OnlyProbes(self.app)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is no progress is counted."""
        self._num_unparsed += len(data)
        if self._receipt_timer is None and self._is_idle():
            self._await_request()
        super().data_received(data)
        if self._num_unparsed > self._limits.max_header_bytes and not self.transport.is_closing():
            self._refusal = self._too_large()
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, unless there are too many."""
        if len(self.headers) >= self._limits.max_headers:
            self._refuse(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, which in HTTP/1.1 says for which host it is (RFC 9112, section 3.2)."""
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse(ApiError(400, "a request needs one Host header", code="invalid_http"))
        self._num_unparsed = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._num_unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's receipt."""
        self._num_unparsed = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's word for it, which says nothing
        """Refuse what is no HTTP, or too much of it, and close."""
        error = self._refusal or ApiError(400, "this is not valid HTTP", code="invalid_http")
        body = error.body()
        head = STATUS_LINE[
            error.status
        ] + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """Give a client that reads too slowly its time."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has caught up."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None; asyncio takes either
        """Tell whether the connection stays open for the response."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started or self.pipeline:
            return False
        if self.transport.get_extra_info("ssl_object") is not None:  # TLS ends both ways at once
            return False
        if cycle.scope["http_version"] != "1.1":
            return False
        cycle.keep_alive = False
        self.transport.write(_PROBE)
        self._check_for_reset(cycle, _FIRST_CHECK)
        return True

    def _check_for_reset(self, cycle: RequestResponseCycle, delay: float) -> None:
        """Look now and then, for nobody reads from the connection any more and would be told."""
        if cycle.response_complete or self.transport.is_closing():
            return
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self.loop.call_later(delay, self._check_for_reset, cycle, min(2 * delay, _LAST_CHECK))

    def _is_idle(self) -> bool:
        """Tell whether no request is being served: bytes that come now must become one."""
        return self.cycle is None or self.cycle.response_complete

    def _await_request(self) -> None:
        self._receipt_timer = self.loop.call_later(self._limits.receipt_timeout, self._give_up)

    def _stop_waiting(self) -> None:
        if self._receipt_timer is not None:
            self._receipt_timer.cancel()
            self._receipt_timer = None

    def _give_up(self) -> None:
        """Close a connection whose request did not come; one that has begun to come gets a reason."""
        self._receipt_timer = None
        if self._num_unparsed and self._is_idle():
            seconds = self._limits.receipt_timeout
            message = f"the request's headers did not arrive within {seconds:g} s"
            self._refusal = ApiError(408, message, code="timeout")
            self.send_400_response("")
        else:
            self.transport.close()

    def _too_large(self) -> ApiError:
        num_bytes, num_headers = self._limits.max_header_bytes, self._limits.max_headers
        message = f"a request's head may have {num_bytes} bytes and {num_headers} headers"
        return ApiError(431, message, code="headers_too_large")

    def _refuse(self, error: ApiError) -> None:
        """End parsing from one of its callbacks."""
        self._refusal = error
        raise ValueError(error.message)


class _OnlyProbes:
    """The application to connections beyond the limit."""

    def __init__(self, app: Any) -> None:
        self._app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a probe, refuse anything else, and let the client come back on a new connection."""

        async def send_and_close(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        if scope["path"].rstrip("/") in PROBES:
            await self._app(scope, receive, send_and_close)
            return
        error = ApiError(
            429,
            "too many connections are open",
            kind="rate_limit_error",
            code="too_many_connections",
            retry_after=1.0,
        )
        await error.response(scope["path"])(scope, receive, send_and_close)
