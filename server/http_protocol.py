"""HTTP on one connection: uvicorn's protocol, and what it leaves out."""

import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FIRST_CHECK, _LAST_CHECK = 0.005, 1.0
"""Seconds between looks for a reset; they double."""


class HttpProtocol(HttpToolsProtocol):
    """Also answers a client that ended its sending side only, as `nc -N` does.

    TCP says no more of such a client than of one that left. But a host whose program left resets the
    connection at the first byte, so an interim response (RFC 9110, section 15.2), which every HTTP/1.1
    client knows, asks whether anybody is there. Once the response has begun, or where several requests wait
    in one connection, it cannot be asked: the end of sending is then the end, as in uvicorn.
    """

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None; asyncio takes either
        """Tell whether the connection stays open for the response."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_started or self.pipeline:
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
