"""HttpBackend: answers from any server of OpenAI's API, streamed; beyond text it need not say anything."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx

from server.terminal.backend import AnswerError, AnswerEvent, Message, TextPiece
from server.terminal.clean import clean_line
from server.terminal.settings import AnswerParams
from server.terminal.sse import MAX_EVENT_BYTES, EventReader
from server.terminal.stream_members import AnswerReader, error_message, member

_CONNECT_SECONDS = 10.0
_MAX_ERROR_BYTES = 64 * 2**10
_OPTIONS = "stream_options"  # without it OpenAI's servers send no usage; some others do not know it


class HttpBackend:
    """A server elsewhere; open_http_backend() finds out what it serves."""

    def __init__(self, client: httpx.AsyncClient, *, model: str) -> None:
        self._client = client
        self._model = model
        self.name = clean_line(model)
        self.description = clean_line(f"at {client.base_url}".rstrip("/"))

    def chat(self, messages: Sequence[Message], params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a conversation; raises AnswerError."""
        history = [{"role": message.role, "content": message.content} for message in messages]
        return self._generate("chat/completions", {"messages": history}, params)

    def complete(self, prompt: str, params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        """Continue a text; raises AnswerError."""
        return self._generate("completions", {"prompt": prompt}, params)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _generate(
        self, path: str, fields: Mapping[str, object], params: AnswerParams
    ) -> AsyncGenerator[AnswerEvent, None]:
        body = {"model": self._model, **fields, **params.model_dump(exclude_none=True), "stream": True}
        reader = AnswerReader()
        with_options = {**body, _OPTIONS: {"include_usage": True}}
        async with _http_errors(self._client), self._post(path, with_options, body) as response:
            if "json" in response.headers.get("content-type", ""):  # it does not stream
                for piece in reader.read(await _read_json(response)):
                    yield piece
            else:
                async for piece in _read_stream(response, reader):
                    yield piece
        yield reader.stats

    @asynccontextmanager
    async def _post(self, path: str, *bodies: Mapping[str, object]) -> AsyncIterator[httpx.Response]:
        """Send the first body, and the next one if the server refuses what it has more."""
        for number, body in enumerate(bodies):
            async with self._client.stream("POST", path, json=body) as response:
                if response.is_success:
                    yield response
                    return
                error = await _error_of(response)
                is_last = number == len(bodies) - 1
                if is_last or _OPTIONS not in error or not response.is_client_error:
                    raise AnswerError(error)


async def open_http_backend(url: str, *, model: str | None, api_key: str | None) -> HttpBackend:
    """Return a backend for the server at `url`; without `model` the first that it lists.

    Raises AnswerError if that is to be asked and the server does not answer.
    """
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # a prompt may take minutes until its first token
    client = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout)
    try:
        return HttpBackend(client, model=model or await _first_model(client))
    except BaseException:
        await client.aclose()
        raise


async def _first_model(client: httpx.AsyncClient) -> str:
    async with _http_errors(client), client.stream("GET", "models", timeout=_CONNECT_SECONDS) as response:
        if not response.is_success:
            raise AnswerError(f"{await _error_of(response)}; if it lists no models, name one with --model")
        listed = member(await _read_json(response), "data")
    name = member(listed[0], "id") if isinstance(listed, list) and listed else None
    if not isinstance(name, str) or not name:
        raise AnswerError(f"{_where(client)} lists no models: name one with --model")
    return name


async def _read_stream(response: httpx.Response, reader: AnswerReader) -> AsyncIterator[TextPiece]:
    events = EventReader()
    async for data in response.aiter_bytes():
        for event in events.feed(data):
            if event.data == "[DONE]":
                return
            content = _parse(event.data)
            if event.name == "error" or member(content, "error") is not None:
                raise AnswerError(error_message(content) or "the server ended the answer with an error")
            for piece in reader.read(content):
                yield piece
    if not reader.is_finished:
        raise AnswerError("the connection ended before the answer did")


async def _read_json(response: httpx.Response) -> object:
    return _parse((await _read_bounded(response, MAX_EVENT_BYTES)).decode(errors="replace"))


def _parse(text: str) -> object:
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        raise AnswerError(f"the server sent what is no JSON: {clean_line(text, max_chars=80)}") from None
    return content


async def _read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    content = b""
    async for data in response.aiter_bytes():
        content += data
        if len(content) > max_bytes:
            raise AnswerError(f"the server sent more than {max_bytes:,} bytes")
    return content


async def _error_of(response: httpx.Response) -> str:
    """Return what a status other than 200 means, on one line."""
    status = f"{response.status_code} {clean_line(response.reason_phrase)}".rstrip()
    try:
        content = json.loads(await _read_bounded(response, _MAX_ERROR_BYTES))
    except (ValueError, RecursionError, AnswerError):
        content = None
    return f"{clean_line(str(response.url))} answered {status}: {error_message(content) or 'no reason given'}"


@asynccontextmanager
async def _http_errors(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Say in one line what is wrong with a connection."""
    try:
        yield
    except httpx.ConnectError as error:
        raise AnswerError(f"{_where(client)} cannot be reached: {clean_line(str(error))}") from error
    except httpx.TimeoutException as error:
        raise AnswerError(f"{_where(client)} does not answer") from error
    except httpx.HTTPError as error:
        reason = clean_line(str(error)) or type(error).__name__
        raise AnswerError(f"the connection to {_where(client)} broke: {reason}") from error


def _where(client: httpx.AsyncClient) -> str:
    return clean_line(str(client.base_url).rstrip("/"))
