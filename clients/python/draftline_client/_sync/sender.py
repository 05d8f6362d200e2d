# Generated from _async/sender.py by tools/generate_sync_client.py: change that file, not this one.
"""Sending calls and sending them again, over a synchronous connection pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import httpx

from draftline_client import _protocol
from draftline_client._accumulate import Accumulator
from draftline_client._call import Call
from draftline_client._chunks import ChunkReader, check_event_stream
from draftline_client._endpoint import Endpoint, Lifetime
from draftline_client._sync.stream import Source, read_chunks
from draftline_client.errors import (
    APIConnectionError,
    APIStatusError,
    ClosedError,
    DraftlineClientError,
    ServiceUnavailableError,
)

T = TypeVar("T")
R = TypeVar("R")


class Sender:
    """Sends calls to an endpoint and retries them."""

    def __init__(
        self,
        endpoint: Endpoint,
        http: httpx.Client,
        *,
        max_retries: int,
        sleep: Callable[[float], object],
        parent: Lifetime | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.lifetime = Lifetime(parent)
        self._http = http
        self._max_retries = _protocol.checked_max_retries(max_retries)
        self._sleep = sleep

    def derive(self, endpoint: Endpoint, *, max_retries: int | None) -> Sender:
        """Return a sender over the same connections, which is closed when this one is."""
        return Sender(
            endpoint,
            self._http,
            max_retries=self._max_retries if max_retries is None else max_retries,
            sleep=self._sleep,
            parent=self.lifetime,
        )

    def fetch(self, call: Call[T]) -> T:
        """Return the whole reply."""
        return self._retry(lambda: self._fetch_once(call), call)

    def stream(self, call: Call[T], accumulator: Accumulator[T]) -> Source[T]:
        """Return the stream as soon as its first headers are there."""
        return self._retry(lambda: self._stream_once(call, accumulator), call)

    def probe(self, call: Call[bool]) -> bool:
        """Tell whether the server answers and says yes; never retried."""
        try:
            response = self._open(call)
        except (APIConnectionError, ServiceUnavailableError):
            return False
        self._read_short(response)  # to its end, so that the next probe finds the connection open
        return True

    def _retry(self, once: Callable[[], R], call: Call[object]) -> R:
        for attempt in range(self._max_retries):
            try:
                return once()
            except (APIConnectionError, APIStatusError) as error:
                if not _protocol.should_retry(call, error):
                    raise
                failure: DraftlineClientError = error
            self._sleep(_protocol.retry_delay(failure, attempt))
        return once()

    def _fetch_once(self, call: Call[T]) -> T:
        response = self._open(call)
        body = self._read(response, _protocol.MAX_BODY_BYTES)
        return _protocol.parse_reply(call, response, body)

    def _stream_once(self, call: Call[T], accumulator: Accumulator[T]) -> Source[T]:
        response = self._open(call)
        try:
            check_event_stream(response)
        except DraftlineClientError:
            response.close()
            raise
        reader = ChunkReader(call, accumulator, _protocol.envelope_of(response))
        chunks = read_chunks(response, reader)
        next(chunks)
        return Source(response=response, reader=reader, chunks=chunks)

    def _open(self, call: Call[object]) -> httpx.Response:
        """Send once and return a 2xx reply whose body is still to be read."""
        if self.lifetime.is_over:
            raise ClosedError("the client is closed")
        request = self.endpoint.build_request(self._http, call)
        with _protocol.transport_errors(request):
            response = self._http.send(request, stream=True)
        if response.is_success:
            return response
        raise _protocol.status_error(response, self._read_short(response))

    def _read_short(self, response: httpx.Response) -> _protocol.BoundedBody:
        try:
            return self._read(response, _protocol.MAX_ERROR_BYTES)
        except DraftlineClientError:
            return _protocol.BoundedBody(0)  # the status says more than the failure to read its text

    def _read(self, response: httpx.Response, limit: int) -> _protocol.BoundedBody:
        body = _protocol.BoundedBody(limit)
        try:
            with _protocol.transport_errors(response.request):
                for data in response.iter_bytes():
                    if not body.add(data):
                        break
        finally:
            response.close()
        return body
