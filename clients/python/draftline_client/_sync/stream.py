# Generated from _async/stream.py by tools/generate_sync_client.py: change that file, not this one.
"""Streams of the synchronous client: chunks as they arrive, and what they make together."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import httpx

from draftline_client import _protocol
from draftline_client._accumulate import ChatAccumulator, CompletionAccumulator, ResponseAccumulator
from draftline_client._chunks import ChunkReader, stream_closed_error, stream_errors
from draftline_client.types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    RateLimits,
    Response,
    ResponseEvent,
    ResponseUsage,
    Usage,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Source(Generic[T]):
    """An open reply, and the chunks in it."""

    response: httpx.Response
    reader: ChunkReader[T]
    chunks: Generator[T | None, None, None]


def read_chunks(response: httpx.Response, reader: ChunkReader[T]) -> Generator[T | None, None, None]:
    """Yield None once, then the chunks.

    The first yield starts the generator, so that its `finally` runs even for a stream that nobody reads. It
    holds no reference to its Stream: a cycle would leave the connection open until the next collection.
    """
    try:
        yield None
        with stream_errors(response, reader):
            for data in response.iter_bytes():
                yield from reader.feed(data)
            reader.finish()
    finally:
        response.close()


class Stream(Generic[T]):
    """The chunks of a streamed reply, as they arrive.

    Closing it early closes the connection, which makes the server stop the generation; so does leaving
    its `with` block or dropping the last reference to it. One thread may use it at a time.

    Raises StreamError when the server reports an error, StreamBrokenError when the connection breaks or the
    reply ends early, ProtocolError for what is no chunk, ClosedError when it is read after `close`. The
    first three say in `received` what had come.
    """

    def __init__(self, source: Source[T]) -> None:
        self._response = source.response
        self._reader = source.reader
        self._chunks = source.chunks
        self._is_closed = False

    @property
    def response(self) -> httpx.Response:
        """The HTTP reply, for its headers."""
        return self._response

    @property
    def request_id(self) -> str | None:
        """The X-Request-Id header of the reply, for the server's log and `requests.cancel`."""
        return _protocol.request_id_of(self._response)

    @property
    def rate_limits(self) -> RateLimits | None:
        """What was left of the API key's limits as the stream began, if it has any."""
        return _protocol.envelope_of(self._response).rate_limits

    @property
    def text(self) -> str:
        """The text of the first choice that was read up to now."""
        return self._reader.accumulator.text

    @property
    def usage(self) -> Usage | ResponseUsage | None:
        """The token counts, once the stream was read to its end; None before."""
        return self._reader.accumulator.usage

    def text_deltas(self) -> Iterator[str]:
        """Yield the text of the first choice piece by piece; other choices are read over."""
        for chunk in self:
            if text := self._reader.accumulator.text_of(chunk):
                yield text

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_closed:
            raise stream_closed_error()
        chunk = next(self._chunks)
        assert chunk is not None
        return chunk

    def close(self) -> None:
        """Close the connection unless the reply was read to its end; safe to call twice."""
        self._is_closed = not self._reader.is_done
        self._response.close()
        with suppress(RuntimeError, ValueError):  # it is being read elsewhere: the close ends that wait
            self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_to_end(self) -> None:
        for _ in self:
            pass
        if not self._reader.is_done:
            raise self._reader.broken("the stream broke before, there is no whole reply")


class CompletionStream(Stream[CompletionChunk]):
    """The chunks of a completion."""

    def __init__(self, source: Source[CompletionChunk], accumulator: CompletionAccumulator) -> None:
        super().__init__(source)
        self._accumulator = accumulator

    @property
    def usage(self) -> Usage | None:
        """The token counts, once the stream was read to its end; None before."""
        return self._accumulator.usage

    def get_final_completion(self) -> Completion:
        """Read to the end and return the reply as if it had not been streamed, whatever was read before.

        Raises what reading raises, and ProtocolError if `stream_options` left out the usage.
        """
        self._read_to_end()
        return self._accumulator.completion()


class ChatStream(Stream[ChatCompletionChunk]):
    """The chunks of an answer."""

    def __init__(self, source: Source[ChatCompletionChunk], accumulator: ChatAccumulator) -> None:
        super().__init__(source)
        self._accumulator = accumulator

    @property
    def usage(self) -> Usage | None:
        """The token counts, once the stream was read to its end; None before."""
        return self._accumulator.usage

    def get_final_completion(self) -> ChatCompletion:
        """Read to the end and return the reply as if it had not been streamed, whatever was read before.

        Raises what reading raises, and ProtocolError if `stream_options` left out the usage.
        """
        self._read_to_end()
        return self._accumulator.completion()


class ResponseStream(Stream[ResponseEvent]):
    """The events of a response."""

    def __init__(self, source: Source[ResponseEvent], accumulator: ResponseAccumulator) -> None:
        super().__init__(source)
        self._accumulator = accumulator

    @property
    def usage(self) -> ResponseUsage | None:
        """The token counts, once the stream was read to its end; None before."""
        return self._accumulator.usage

    def get_final_response(self) -> Response:
        """Read to the end and return the whole response, whatever was read before.

        Raises what reading raises.
        """
        self._read_to_end()
        return self._accumulator.final_response()
