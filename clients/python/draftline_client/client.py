"""The synchronous client. `async_client.py` is its twin: whatever does no I/O is shared by both."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
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


class Stream(Generic[T]):
    """The chunks of a streamed reply, as they arrive.

    Closing it early closes the connection, which makes the server stop the generation; so does leaving
    its `with` block or dropping the last reference to it. One thread may use it at a time.

    Raises StreamError when the server reports an error, APIConnectionError when the connection breaks,
    ProtocolError when the reply ends early, ClosedError when it is read after `close`.
    """

    def __init__(
        self, response: httpx.Response, reader: ChunkReader[T], chunks: Generator[T | None, None, None]
    ) -> None:
        self.response = response
        self._reader = reader
        self._chunks = chunks
        self._is_closed = False

    @property
    def request_id(self) -> str | None:
        """The X-Request-Id header of the reply."""
        return _protocol.request_id_of(self.response)

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
        self.response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_chunks(response: httpx.Response, reader: ChunkReader[T]) -> Generator[T | None, None, None]:
    """Yield None once, then the chunks.

    The first yield starts the generator, so that `finally` runs even for a stream that nobody reads. It
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


class _Sender:
    """Sends calls and retries them."""

    def __init__(
        self, endpoint: Endpoint, http: httpx.Client, *, max_retries: int, sleep: Callable[[float], None]
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._max_retries = max_retries
        self._sleep = sleep
        self.is_closed = False

    def fetch(self, call: Call[T]) -> T:
        """Return the whole reply."""
        return self._retry(self._fetch_once, call)

    def stream(self, call: Call[T]) -> Stream[T]:
        """Return the stream as soon as its first headers are there."""
        return self._retry(self._stream_once, call)

    def probe(self, call: Call[bool]) -> bool:
        """Tell whether the server answers and says yes; never retried."""
        try:
            response = self._open(call)
        except (APIConnectionError, ServiceUnavailableError):
            return False
        self._read_short(response)  # to its end, so that the next probe finds the connection open
        return True

    def _retry(self, once: Callable[[Call[T]], R], call: Call[T]) -> R:
        for attempt in range(self._max_retries):
            try:
                return once(call)
            except (APIConnectionError, APIStatusError) as error:
                if not _protocol.should_retry(call, error):
                    raise
                failure: DraftlineClientError = error
            self._sleep(_protocol.retry_delay(failure, attempt))
        return once(call)

    def _fetch_once(self, call: Call[T]) -> T:
        response = self._open(call)
        body = self._read(response, _protocol.MAX_BODY_BYTES)
        return _protocol.parse_reply(call, response, body)

    def _stream_once(self, call: Call[T]) -> Stream[T]:
        response = self._open(call)
        try:
            check_event_stream(response)
        except DraftlineClientError:
            response.close()
            raise
        reader = ChunkReader(call, request_id=_protocol.request_id_of(response))
        chunks = _read_chunks(response, reader)
        next(chunks)
        return Stream(response, reader, chunks)

    def _open(self, call: Call[object]) -> httpx.Response:
        """Send once and return a 2xx reply whose body is still to be read."""
        if self.is_closed:
            raise ClosedError("the client is closed")
        request = self._endpoint.build_request(self._http, call)
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


class Completions:
    """POST /v1/completions."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender

    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> Completion: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> Stream[CompletionChunk]: ...
    @overload
    def create(
        self, *, prompt: Prompt, stream: bool, **options: Unpack[CompletionOptions]
    ) -> Completion | Stream[CompletionChunk]: ...
    def create(
        self, *, prompt: Prompt, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> Completion | Stream[CompletionChunk]:
        """Continue a prompt, or each of several; text or token ids."""
        if stream:
            parse = _parse.parse_completion_chunk
            return self._sender.stream(_calls.completion_call(prompt, options, parse, stream=True))
        call = _calls.completion_call(prompt, options, _parse.parse_completion, stream=False)
        return self._sender.fetch(call)


class Chat:
    """POST /v1/chat/completions."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender

    @overload
    def create(
        self,
        *,
        messages: Sequence[Message],
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> ChatCompletion: ...
    @overload
    def create(
        self, *, messages: Sequence[Message], stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Stream[ChatCompletionChunk]: ...
    @overload
    def create(
        self, *, messages: Sequence[Message], stream: bool, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | Stream[ChatCompletionChunk]: ...
    def create(
        self, *, messages: Sequence[Message], stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer a conversation."""
        if stream:
            parse = _parse.parse_chat_completion_chunk
            return self._sender.stream(_calls.chat_call(messages, options, parse, stream=True))
        return self._sender.fetch(
            _calls.chat_call(messages, options, _parse.parse_chat_completion, stream=False)
        )


class Models:
    """GET /v1/models."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender

    def list(self, **options: Unpack[CallOptions]) -> ModelList:
        """Return the models that the server serves."""
        return self._sender.fetch(_calls.model_list_call(options))

    def retrieve(self, model: str, **options: Unpack[CallOptions]) -> Model:
        """Return one model; raises NotFoundError."""
        return self._sender.fetch(_calls.model_call(model, options))


class Client:
    """A connection pool to one draftline server; safe to share among threads.

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
        http_client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        endpoint = Endpoint(base_url=base_url, api_key=api_key, timeout=timeout)
        max_retries = _protocol.checked_max_retries(max_retries)
        self._own_http = httpx.Client(limits=LIMITS, mounts=UNPROXIED) if http_client is None else None
        http = self._own_http or http_client
        if not isinstance(http, httpx.Client):
            raise TypeError(f"http_client must be an httpx.Client, got {type(http).__name__}")
        self._endpoint = endpoint
        self._sender = _Sender(endpoint, http, max_retries=max_retries, sleep=sleep)
        self.completions = Completions(self._sender)
        self.chat = Chat(self._sender)
        self.models = Models(self._sender)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._endpoint.base_url!r})"

    def tokenize(
        self,
        *,
        text: str | NotGiven = NOT_GIVEN,
        messages: Sequence[Message] | NotGiven = NOT_GIVEN,
        **options: Unpack[TokenizeOptions],
    ) -> Tokenization:
        """Return the token ids of a text, or of a conversation in the model's chat template."""
        return self._sender.fetch(_calls.tokenize_call(text, messages, options))

    def detokenize(self, token_ids: Sequence[int], **options: Unpack[DetokenizeOptions]) -> str:
        """Return the text of token ids."""
        return self._sender.fetch(_calls.detokenize_call(token_ids, options))

    def health(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server is alive; False when it cannot be reached."""
        return self._sender.probe(_calls.probe_call("/health", timeout))

    def ready(self, *, timeout: Timeout = _protocol.PROBE_TIMEOUT) -> bool:
        """Tell whether the server takes requests: not loading, draining or stalled, and reachable."""
        return self._sender.probe(_calls.probe_call("/ready", timeout))

    def version(self, **options: Unpack[CallOptions]) -> str:
        """Return the server's version."""
        return self._sender.fetch(_calls.version_call(options))

    def close(self) -> None:
        """Close the connections; calls raise ClosedError from then on."""
        self._sender.is_closed = True
        if self._own_http is not None:
            self._own_http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
