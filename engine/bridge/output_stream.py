"""OutputStream: the outputs of requests as an async iterator; and where the engine's side puts them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from engine.bridge.unread_budget import UnreadBudget
from engine.interface.errors import DraftlineError
from engine.interface.outputs import RequestOutput

_TOKEN_BYTES, _SCORE_BYTES = 200, 100  # of a token, and of one of its alternatives


class OutputStream:
    """The outputs of the requests of one generate() call, as an async iterator on one event loop.

    Ends after each request has had its final output. Leaving early needs abort(), best in a `finally`;
    aborting what has ended changes nothing.
    """

    def __init__(
        self,
        first_number: int,
        num_requests: int,
        *,
        on_abort: "Callable[[OutputStream, Iterable[int]], None]",
        num_prompt_tokens: int = 0,
        budget: "UnreadBudget[OutputStream] | None" = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.first_number, self.num_requests = first_number, num_requests
        self.num_prompt_tokens = num_prompt_tokens  # of all of its requests
        self._on_abort = on_abort
        self._open = set(range(num_requests))
        self._ready: deque[RequestOutput] = deque()
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._budget = budget or UnreadBudget()
        self.num_unread_bytes = 0  # of outputs behind the first that nobody took yet, about, as events
        self._budget.watch(self)

    @property
    def num_open(self) -> int:
        """Number of requests that have not ended yet."""
        return len(self._open)

    def __aiter__(self) -> "OutputStream":
        return self

    async def __anext__(self) -> RequestOutput:
        """Return the next output; raises EngineUnavailableError if the engine ended first, RequestError."""
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        output = self._ready.popleft()
        if self.num_unread_bytes:
            left = max(0, self.num_unread_bytes - _num_bytes(output)) if self._ready else 0
            self._count(left - self.num_unread_bytes)
        return output

    def get_ready(self) -> list[RequestOutput]:
        """Return, without waiting, the outputs that are already here."""
        ready = list(self._ready)
        self._ready.clear()
        if self.num_unread_bytes:
            self._count(-self.num_unread_bytes)
        return ready

    def abort(self, index: int | None = None) -> None:
        """End one request, or all of them, now; what was under way brings no further output."""
        indices = set(self._open) if index is None else self._open & {index}
        if indices:
            self._open -= indices
            self._on_abort(self, indices)
            self._wake.set()

    def deliver(self, output: RequestOutput) -> None:
        """Take in an output; called by the bridge on this stream's loop."""
        if output.index in self._open:
            if self._ready:  # the reader is behind: counted from here on
                self._count(_num_bytes(output))
            self._ready.append(output)
            if output.finish_reason is not None:
                self._open.discard(output.index)
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after the outputs that are already here."""
        self._error = error
        self._open.clear()
        self._wake.set()

    def end(self, error: Exception) -> None:
        """End what is open now, with an error after the outputs that are already here."""
        if self._open:
            self.abort()
            self.fail(error)

    def drop(self, error: DraftlineError) -> None:
        """End the stream with an error, without what nobody read."""
        self.abort()
        self._ready.clear()
        self._count(-self.num_unread_bytes)
        self.fail(error)

    def _count(self, num_bytes: int) -> None:
        self._budget.count(self, num_bytes)


def _num_bytes(output: RequestOutput) -> int:
    """Return about how many bytes the tokens of an output have as server-sent events."""
    num_bytes = _TOKEN_BYTES * len(output.new_token_ids)
    if output.logprobs:
        num_bytes += sum([_SCORE_BYTES * (1 + len(score.top)) for score in output.logprobs])
        num_bytes += sum([len(score.all_logprobs or b"") for score in output.logprobs])
    return num_bytes


class StreamTarget:
    """Where the outputs of one request go, and the tokens of steps that say no more than that."""

    __slots__ = ("first", "index", "steps", "stream", "token_ids")

    def __init__(self, stream: OutputStream, index: int) -> None:
        self.stream = stream
        self.index = index
        # The event loop's own:
        self.first: RequestOutput | None = None
        self.token_ids: list[int] = []
        self.steps: list[int] = []

    def deliver(self, output: RequestOutput) -> None:
        """Hand an output to the stream, after the tokens before it."""
        self.flush()
        self.first = self.first or output
        self.stream.deliver(output)

    def flush(self) -> None:
        """Hand the tokens to the stream as one output."""
        if self.token_ids:
            assert self.first is not None
            output = RequestOutput(
                index=self.index,
                new_token_ids=tuple(self.token_ids),
                num_cached_tokens=self.first.num_cached_tokens,
                queue_seconds=self.first.queue_seconds,
                steps=tuple(self.steps),
            )
            self.token_ids.clear()
            self.steps.clear()
            self.stream.deliver(output)
