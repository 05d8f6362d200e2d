"""The events of a streamed reply, turned into chunks; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import httpx

from draftline_client._accumulate import Accumulator
from draftline_client._call import Call
from draftline_client._fields import Envelope, parse_object
from draftline_client._protocol import error_detail, request_id_of, transport_errors
from draftline_client._sse import Event, EventDecoder
from draftline_client.errors import (
    APIConnectionError,
    APITimeoutError,
    ClosedError,
    ProtocolError,
    StreamBrokenError,
    StreamError,
    StreamTimeoutError,
)

T = TypeVar("T")


def check_event_stream(response: httpx.Response) -> None:
    """Raise ProtocolError unless the reply is a stream of events."""
    kind = response.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        message = f"a stream was asked for, but the reply's Content-Type is {kind[:100]!r}"
        raise ProtocolError(message, request_id=request_id_of(response))


class ChunkReader(Generic[T]):
    """Turns the bytes of a streamed reply into chunks, and keeps what has come in `accumulator`.

    What follows the end, which is `[DONE]` or a response's last event, is read over: a reply read to its end
    leaves a connection that serves again.
    """

    def __init__(self, call: Call[T], accumulator: Accumulator[T], envelope: Envelope) -> None:
        self._parse = call.parse
        self._envelope = envelope
        self._decoder = EventDecoder()
        self.accumulator = accumulator
        self.is_done = False

    def feed(self, data: bytes) -> Iterator[T]:
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
            if self.accumulator.is_complete:
                self.is_done = True
                return

    def finish(self) -> None:
        """Say that the bytes have ended; raises StreamBrokenError when the reply has not."""
        if not self.is_done:
            raise self.broken("the stream ended before the reply did")

    def broken(self, message: str) -> StreamBrokenError:
        """Build the error of a stream that is over too early."""
        return StreamBrokenError(message, received=self.accumulator.received(self._envelope.request_id))

    def broken_by(self, error: APIConnectionError) -> StreamBrokenError:
        """Build the error of a stream whose connection failed."""
        kind = StreamTimeoutError if isinstance(error, APITimeoutError) else StreamBrokenError
        return kind(error.message, received=self.accumulator.received(self._envelope.request_id))

    def _read(self, event: Event) -> Iterator[T]:
        if event.name not in {"message", "error"} and not event.name.startswith("response."):
            return  # a kind of event newer than this library
        if event.name == "error":
            raise self._stream_error(event)
        fields = parse_object(event.data, envelope=self._envelope)
        if fields.has("error"):
            raise self._stream_error(event)
        chunk = self._parse(fields)
        if self.accumulator.add(chunk):
            yield chunk

    def _stream_error(self, event: Event) -> StreamError:
        detail = error_detail(event.data.encode(), "the server ended the stream with an error")
        request_id = self._envelope.request_id
        return StreamError(detail, request_id=request_id, received=self.accumulator.received(request_id))


@contextmanager
def stream_errors(response: httpx.Response, reader: ChunkReader[T]) -> Iterator[None]:
    """Turn what httpx raises while a stream is read into this library's errors.

    A failure after the end lost nothing and is passed over; one after `close` is its own doing.
    """
    try:
        with transport_errors(response.request):
            yield
    except StreamBrokenError:
        raise
    except APIConnectionError as error:
        if response.is_closed and not reader.is_done:
            raise stream_closed_error() from error
        if not reader.is_done:
            raise reader.broken_by(error) from error
    except ProtocolError as error:
        error.received = reader.accumulator.received(request_id_of(response))
        raise


def stream_closed_error() -> ClosedError:
    """Build the error for reading on after an early close."""
    return ClosedError("the stream was closed before its end; what it had left is lost")
