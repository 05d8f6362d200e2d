"""Sending calls and sending them again, over an asynchronous connection pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

from draftline_client import _protocol
from draftline_client._accumulate import Accumulator
from draftline_client._async.stream import AsyncSource, read_chunks
from draftline_client._call import Call
from draftline_client._chunks import ChunkReader, check_event_stream
from draftline_client._endpoint import Endpoint, Lifetime
from draftline_client.errors import (
    APIConnectionError,
    APIStatusError,
    ClosedError,
    DraftlineClientError,
    ServiceUnavailableError,
)

T = TypeVar("T")
R = TypeVar("R")


class AsyncSender:
    """Sends calls to an endpoint and retries them."""

    def __init__(
        self,
        endpoint: Endpoint,
        http: httpx.AsyncClient,
        *,
        max_retries: int,
        sleep: Callable[[float], Awaitable[object]],
        parent: Lifetime | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.lifetime = Lifetime(parent)
        self._http = http
        self._max_retries = _protocol.checked_max_retries(max_retries)
        self._sleep = sleep

    def derive(self, endpoint: Endpoint, *, max_retries: int | None) -> AsyncSender:
        """Return a sender over the same connections, which is closed when this one is."""
        return AsyncSender(
            endpoint,
            self._http,
            max_retries=self._max_retries if max_retries is None else max_retries,
            sleep=self._sleep,
            parent=self.lifetime,
        )

    async def fetch(self, call: Call[T]) -> T:
        """Return the whole reply."""
        return await self._retry(lambda: self._fetch_once(call), call)

    async def stream(self, call: Call[T], accumulator: Accumulator[T]) -> AsyncSource[T]:
        """Return the stream as soon as its first headers are there."""
        return await self._retry(lambda: self._stream_once(call, accumulator), call)

    async def probe(self, call: Call[bool]) -> bool:
        """Tell whether the server answers and says yes; never retried."""
        try:
            response = await self._open(call)
        except (APIConnectionError, ServiceUnavailableError):
            return False
        await self._read_short(response)  # to its end, so that the next probe finds the connection open
        return True

    async def _retry(self, once: Callable[[], Awaitable[R]], call: Call[object]) -> R:
        for attempt in range(self._max_retries):
            try:
                return await once()
            except (APIConnectionError, APIStatusError) as error:
                if not _protocol.should_retry(call, error):
                    raise
                failure: DraftlineClientError = error
            await self._sleep(_protocol.retry_delay(failure, attempt))
        return await once()

    async def _fetch_once(self, call: Call[T]) -> T:
        response = await self._open(call)
        body = await self._read(response, _protocol.MAX_BODY_BYTES)
        return _protocol.parse_reply(call, response, body)

    async def _stream_once(self, call: Call[T], accumulator: Accumulator[T]) -> AsyncSource[T]:
        response = await self._open(call)
        try:
            check_event_stream(response)
        except DraftlineClientError:
            await response.aclose()
            raise
        reader = ChunkReader(call, accumulator, _protocol.envelope_of(response))
        chunks = read_chunks(response, reader)
        await anext(chunks)
        return AsyncSource(response=response, reader=reader, chunks=chunks)

    async def _open(self, call: Call[object]) -> httpx.Response:
        """Send once and return a 2xx reply whose body is still to be read."""
        if self.lifetime.is_over:
            raise ClosedError("the client is closed")
        request = self.endpoint.build_request(self._http, call)
        with _protocol.transport_errors(request):
            response = await self._http.send(request, stream=True)
        if response.is_success:
            return response
        raise _protocol.status_error(response, await self._read_short(response))

    async def _read_short(self, response: httpx.Response) -> _protocol.BoundedBody:
        try:
            return await self._read(response, _protocol.MAX_ERROR_BYTES)
        except DraftlineClientError:
            return _protocol.BoundedBody(0)  # the status says more than the failure to read its text

    async def _read(self, response: httpx.Response, limit: int) -> _protocol.BoundedBody:
        body = _protocol.BoundedBody(limit)
        try:
            with _protocol.transport_errors(response.request):
                async for data in response.aiter_bytes():
                    if not body.add(data):
                        break
        finally:
            await response.aclose()
        return body
