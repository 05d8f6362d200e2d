"""The events of a streamed reply, turned into chunks; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import httpx

from draftline_client._calls import Call
from draftline_client._fields import parse_object
from draftline_client._protocol import error_detail, request_id_of, transport_errors
from draftline_client._sse import Event, EventDecoder
from draftline_client.errors import APIConnectionError, ClosedError, ProtocolError, StreamError

T_co = TypeVar("T_co", covariant=True)


def check_event_stream(response: httpx.Response) -> None:
    """Raise ProtocolError unless the reply is a stream of events."""
    kind = response.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        message = f"a stream was asked for, but the reply's Content-Type is {kind[:100]!r}"
        raise ProtocolError(message, request_id=request_id_of(response))


class ChunkReader(Generic[T_co]):
    """Turns the bytes of a streamed reply into chunks.

    What follows `[DONE]` is read over: a reply read to its end leaves a connection that serves again.
    """

    def __init__(self, call: Call[T_co], *, request_id: str | None) -> None:
        self._parse = call.parse
        self._request_id = request_id
        self._decoder = EventDecoder()
        self.is_done = False

    def feed(self, data: bytes) -> Iterator[T_co]:
        """Yield the chunks that `data` completes.

        Raises StreamError or ProtocolError, after the good chunks before the fault.
        """
        if self.is_done:
            return
        for event in self._decoder.feed(data):
            if event.data == "[DONE]":
                self.is_done = True
                return
            yield from self._read(event)

    def finish(self) -> None:
        """Say that the bytes have ended; raises ProtocolError when the reply has not."""
        if not self.is_done:
            raise ProtocolError("the stream ended before its [DONE]", request_id=self._request_id)

    def _read(self, event: Event) -> Iterator[T_co]:
        if event.name not in {"message", "error"}:
            return  # a kind of event newer than this library
        if event.name == "error":
            raise self._stream_error(event)
        fields = parse_object(event.data, request_id=self._request_id)
        if fields.has("error"):
            raise self._stream_error(event)
        yield self._parse(fields)

    def _stream_error(self, event: Event) -> StreamError:
        detail = error_detail(event.data.encode(), "the server ended the stream with an error")
        return StreamError(detail, request_id=self._request_id)


@contextmanager
def stream_errors(response: httpx.Response, reader: ChunkReader[object]) -> Iterator[None]:
    """Turn what httpx raises while a stream is read into this library's errors.

    A failure after `[DONE]` lost nothing and is passed over; one after `close` is its own doing.
    """
    try:
        with transport_errors(response.request):
            yield
    except APIConnectionError as error:
        if response.is_closed and not reader.is_done:
            raise stream_closed_error() from error
        if not reader.is_done:
            raise


def stream_closed_error() -> ClosedError:
    """Build the error for reading on after an early close."""
    return ClosedError("the stream was closed before its end; what it had left is lost")
