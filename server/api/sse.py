"""The answer as server-sent events: one socket write for all that a step brought, abort on leaving."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.interface.errors import DraftlineError
from server.api.body import run_sized
from server.api.errors import ApiError, to_api_error
from server.api.generation import Generation
from server.api.text_delta import TextDelta
from server.api.usage import Usage
from server.middleware import RequestContext

logger = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]

_T = TypeVar("_T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work`, cancelling it at once when the client leaves; raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventWriter(Protocol):
    """Writes the events of one stream."""

    @property
    def opening(self) -> bytes:
        """The events before any text."""

    def deltas(self, deltas: Sequence[TextDelta]) -> bytes:
        """Return the events of several deltas."""

    def size(self, deltas: Sequence[TextDelta]) -> int:
        """Return about how many bytes take long to write, 0 for none."""

    @property
    def closing_size(self) -> int:
        """About how many bytes of what closing() returns take long to write, 0 for none."""

    def closing(self, usage: Usage) -> bytes:
        """Return the events after the last choice has finished."""

    def error(self, error: ApiError) -> bytes:
        """Return the event that ends a stream which failed."""


class EventStream(Response):
    """Streams a generation; an error before its first token still gets a status of its own."""

    def __init__(self, generation: Generation, writer: EventWriter, context: RequestContext) -> None:
        super().__init__()
        self._generation = generation
        self._writer = writer
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, and free the requests whatever happens."""
        with self._generation:
            try:
                await while_connected(receive, self._send_answer(scope, receive, send))
            finally:
                self._context.note_usage(self._generation.usage, self._generation.timings)

    async def _send_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        deltas = await _or_error(self._generation.next_deltas())
        if isinstance(deltas, ApiError):
            await deltas.response(scope["path"])(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        last = await _or_error(self._send_deltas(send, deltas))
        if isinstance(last, ApiError):
            last = self._writer.error(last)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_deltas(self, send: Send, deltas: list[TextDelta]) -> bytes:
        """Send all but the last events and return those."""
        writer, generation = self._writer, self._generation
        events = writer.opening
        while True:
            events += await run_sized(writer.size(deltas), writer.deltas, deltas)
            if generation.is_finished:
                return events + await run_sized(writer.closing_size, writer.closing, generation.usage)
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": True})
            deltas = await generation.next_deltas()
            events = b""


async def _or_error(work: Coroutine[Any, Any, _T]) -> _T | ApiError:
    """Await `work` and return what it returned, or the answer to the error that it raised."""
    try:
        return await work
    except (ApiError, DraftlineError) as error:
        return to_api_error(error)
    except Exception as error:
        logger.exception("a generation failed")
        return to_api_error(error)
