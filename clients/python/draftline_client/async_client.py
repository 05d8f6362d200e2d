"""The asynchronous client, the twin of `client.py`: whatever does no I/O is shared by both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, overload

import httpx

from draftline_client import _calls, _parse, _protocol
from draftline_client._calls import Call
from draftline_client._chunks import ChunkReader, check_event_stream, stream_closed_error, stream_errors
from draftline_client._endpoint import DEFAULT_TIMEOUT, LIMITS, UNPROXIED, Endpoint
from draftline_client.errors import (
    APIConnectionError,
    APIStatusError,
    ClosedError,
    DraftlineClientError,
    ServiceUnavailableError,
)
from draftline_client.options import NOT_GIVEN, Message, NotGiven, Prompt, Timeout
from draftline_client.types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Model,
    ModelList,
    Tokenization,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from draftline_client.options import (
        CallOptions,
        ChatOptions,
        CompletionOptions,
        DetokenizeOptions,
        TokenizeOptions,
    )

T = TypeVar("T")
R = TypeVar("R")


class AsyncStream(Generic[T]):
    """The chunks of a streamed reply, as they arrive.

    Closing it early closes the connection, which makes the server stop the generation; so does leaving
    its `with` block or dropping the last reference to it. Another task may close it.

    Raises StreamError when the server reports an error, APIConnectionError when the connection breaks,
    ProtocolError when the reply ends early, ClosedError when it is read after `aclose`.
    """

    def __init__(
        self, response: httpx.Response, reader: ChunkReader[T], chunks: AsyncGenerator[T | None, None]
    ) -> None:
        self.response = response
        self._reader = reader
        self._chunks = chunks
        self._is_closed = False

    @property
    def request_id(self) -> str | None:
        """The X-Request-Id header of the reply."""
        return _protocol.request_id_of(self.response)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._is_closed:
            raise stream_closed_error()
        chunk = await anext(self._chunks)
        assert chunk is not None
        return chunk

    async def aclose(self) -> None:
        """Close the connection unless the reply was read to its end; safe to call twice."""
        self._is_closed = not self._reader.is_done
        await self.response.aclose()
        with suppress(RuntimeError):  # another task is reading: the closed connection ends its wait
            await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _read_chunks(response: httpx.Response, reader: ChunkReader[T]) -> AsyncGenerator[T | None, None]:
    """Yield None once, then the chunks.

    The first yield starts the generator, so that the event loop runs its `finally` even for a stream that
    nobody reads. It holds no reference to its AsyncStream, which would be a cycle.
    """
    try:
        yield None
        with stream_errors(response, reader):
            async for data in response.aiter_bytes():
                for chunk in reader.feed(data):
                    yield chunk
            reader.finish()
    finally:
        await response.aclose()


class _AsyncSender:
    """Sends calls and retries them."""

    def __init__(
        self,
        endpoint: Endpoint,
        http: httpx.AsyncClient,
        *,
        max_retries: int,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._max_retries = max_retries
        self._sleep = sleep
        self.is_closed = False

    async def fetch(self, call: Call[T]) -> T:
        """Return the whole reply."""
        return await self._retry(self._fetch_once, call)

    async def stream(self, call: Call[T]) -> AsyncStream[T]:
        """Return the stream as soon as its first headers are there."""
        return await self._retry(self._stream_once, call)

    async def probe(self, call: Call[bool]) -> bool:
        """Tell whether the server answers and says yes; never retried."""
        try:
            response = await self._open(call)
        except (APIConnectionError, ServiceUnavailableError):
            return False
        await self._read_short(response)  # to its end, so that the next probe finds the connection open
        return True

    async def _retry(self, once: Callable[[Call[T]], Awaitable[R]], call: Call[T]) -> R:
        for attempt in range(self._max_retries):
            try:
                return await once(call)
            except (APIConnectionError, APIStatusError) as error:
                if not _protocol.should_retry(call, error):
                    raise
                failure: DraftlineClientError = error
            await self._sleep(_protocol.retry_delay(failure, attempt))
        return await once(call)

    async def _fetch_once(self, call: Call[T]) -> T:
        response = await self._open(call)
        body = await self._read(response, _protocol.MAX_BODY_BYTES)
        return _protocol.parse_reply(call, response, body)

    async def _stream_once(self, call: Call[T]) -> AsyncStream[T]:
        response = await self._open(call)
        try:
            check_event_stream(response)
        except DraftlineClientError:
            await response.aclose()
            raise
        reader = ChunkReader(call, request_id=_protocol.request_id_of(response))
        chunks = _read_chunks(response, reader)
        await anext(chunks)
        return AsyncStream(response, reader, chunks)

    async def _open(self, call: Call[object]) -> httpx.Response:
        """Send once and return a 2xx reply whose body is still to be read."""
        if self.is_closed:
            raise ClosedError("the client is closed")
        request = self._endpoint.build_request(self._http, call)
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


class AsyncCompletions:
    """POST /v1/completions."""

    def __init__(self, sender: _AsyncSender) -> None:
        self._sender = sender

    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> Completion: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> AsyncStream[CompletionChunk]: ...
    @overload
    async def create(
        self, *, prompt: Prompt, stream: bool, **options: Unpack[CompletionOptions]
    ) -> Completion | AsyncStream[CompletionChunk]: ...
    async def create(
        self, *, prompt: Prompt, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> Completion | AsyncStream[CompletionChunk]:
        """Continue a prompt, or each of several; text or token ids."""
        if stream:
            parse = _parse.parse_completion_chunk
            return await self._sender.stream(_calls.completion_call(prompt, options, parse, stream=True))
        call = _calls.completion_call(prompt, options, _parse.parse_completion, stream=False)
        return await self._sender.fetch(call)


class AsyncChat:
    """POST /v1/chat/completions."""

    def __init__(self, sender: _AsyncSender) -> None:
        self._sender = sender

    @overload
    async def create(
        self,
        *,
        messages: Sequence[Message],
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    async def create(
        self, *, messages: Sequence[Message], stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AsyncStream[ChatCompletionChunk]: ...
    @overload
    async def create(
        self, *, messages: Sequence[Message], stream: bool, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]: ...
    async def create(
        self, *, messages: Sequence[Message], stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
        """Answer a conversation."""
        if stream:
            parse = _parse.parse_chat_completion_chunk
            return await self._sender.stream(_calls.chat_call(messages, options, parse, stream=True))
        return await self._sender.fetch(
            _calls.chat_call(messages, options, _parse.parse_chat_completion, stream=False)
        )


class AsyncModels:
    """GET /v1/models."""

    def __init__(self, sender: _AsyncSender) -> None:
        self._sender = sender

    async def list(self, **options: Unpack[CallOptions]) -> ModelList:
        """Return the models that the server serves."""
        return await self._sender.fetch(_calls.model_list_call(options))

    async def retrieve(self, model: str, **options: Unpack[CallOptions]) -> Model:
        """Return one model; raises NotFoundError."""
        return await self._sender.fetch(_calls.model_call(model, options))


class AsyncClient:
    """A connection pool to one draftline server; safe to share among the tasks of one event loop.

    `base_url` and `api_key` come from DRAFTLINE_BASE_URL and DRAFTLINE_API_KEY when None. `timeout` is
    httpx's, in seconds where it is a number; it applies also to an `http_client` of your own, which
    stays yours to close. `sleep` waits between attempts.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = _protocol.DEFAULT_MAX_RETRIES,
        http_client: httpx.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        endpoint = Endpoint(base_url=base_url, api_key=api_key, timeout=timeout)
        max_retries = _protocol.checked_max_retries(max_retries)
        self._own_http = httpx.AsyncClient(limits=LIMITS, mounts=UNPROXIED) if http_client is None else None
        http = self._own_http or http_client
        if not isinstance(http, httpx.AsyncClient):
            raise TypeError(f"http_client must be an httpx.AsyncClient, got {type(http).__name__}")
        self._endpoint = endpoint
        self._sender = _AsyncSender(endpoint, http, max_retries=max_retries, sleep=sleep)
        self.completions = AsyncCompletions(self._sender)
        self.chat = AsyncChat(self._sender)
        self.models = AsyncModels(self._sender)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._endpoint.base_url!r})"

    async def tokenize(
        self,
        *,
        text: str | NotGiven = NOT_GIVEN,
        messages: Sequence[Message] | NotGiven = NOT_GIVEN,
        **options: Unpack[TokenizeOptions],
    ) -> Tokenization:
        """Return the token ids of a text, or of a conversation in the model's chat template."""
        return await self._sender.fetch(_calls.tokenize_call(text, messages, options))

    async def detokenize(self, token_ids: Sequence[int], **options: Unpack[DetokenizeOptions]) -> str:
        """Return the text of token ids."""
        return await self._sender.fetch(_calls.detokenize_call(token_ids, options))

    async def health(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server is alive; False when it cannot be reached."""
        return await self._sender.probe(_calls.probe_call("/health", timeout))

    async def ready(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server takes requests: not loading, draining or stalled, and reachable."""
        return await self._sender.probe(_calls.probe_call("/ready", timeout))

    async def version(self, **options: Unpack[CallOptions]) -> str:
        """Return the server's version."""
        return await self._sender.fetch(_calls.version_call(options))

    async def aclose(self) -> None:
        """Close the connections; calls raise ClosedError from then on."""
        self._sender.is_closed = True
        if self._own_http is not None:
            await self._own_http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
