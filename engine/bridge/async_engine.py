"""AsyncEngine: an engine, wherever it runs, as an EngineClient on an asyncio event loop.

Frozen data goes in and comes out, in messages (`messages.py`): nothing here holds a part of the engine.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence

from engine.bridge.engine_host import EngineHost
from engine.bridge.messages import (
    AbortRequests,
    AddRequests,
    CacheLookedUp,
    EngineDied,
    FromEngine,
    LookUpCache,
    RequestsRefused,
    StepResults,
)
from engine.bridge.outbox import Outbox
from engine.bridge.output_stream import OutputStream, StreamTarget
from engine.bridge.unread_budget import UnreadBudget
from engine.interface.cache_explanation import CacheExplanation
from engine.interface.cancellation import Cancellation
from engine.interface.errors import (
    EngineDeadError,
    EngineRestartingError,
    EngineUnavailableError,
    QueueFullError,
    RequestError,
    SlowReaderError,
)
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.outputs import GenerationRequest
from engine.interface.stats import EngineStats

_MAX_LOOKUPS = 64  # of the cache, at once: the engine answers one between two steps


class AsyncEngine:
    """Sends requests to an engine's host and hands its outputs to streams, all on the event loop's thread.

    Outputs of a stream are the host's `stream_interval` seconds apart, but for first and last ones: tokens
    that come sooner are delivered together.
    """

    def __init__(self, host: EngineHost, *, max_queue: int, max_queue_tokens: int | None = None) -> None:
        self.info, self.limits = host.info, host.limits
        self._host = host
        self._max_open = host.max_num_seqs + max_queue
        self._max_open_tokens = max_queue_tokens
        self._next_number = 0
        self._unread: UnreadBudget[OutputStream] = UnreadBudget()
        self._streams: dict[int, OutputStream] = {}  # by the number of their first request
        self._targets: dict[int, StreamTarget] = {}  # by the number of their request
        self._lookups: dict[int, asyncio.Future[CacheExplanation]] = {}
        self._outboxes: dict[asyncio.AbstractEventLoop, int] = {}
        self._error: EngineUnavailableError | None = None
        self._all_ended: asyncio.Event | None = None  # set while draining, when no stream is left

    @property
    def is_dead(self) -> bool:
        """True after a step raised; nothing can run any more."""
        return self._host.death is not None

    @property
    def is_restarting(self) -> bool:
        """True after a failure, until the engine takes work again."""
        return self._host.is_restarting

    def generate(self, requests: Sequence[GenerationRequest]) -> OutputStream:
        """Start all of the requests or none.

        Raises RequestError for one that can never run, QueueFullError, EngineUnavailableError.
        """
        self._raise_if_unavailable()
        for generation in requests:
            self.limits.check(generation)
        self._host.check(requests)
        num_tokens = sum([len(generation.prompt_token_ids) for generation in requests])
        self._check_queue(len(requests), num_tokens)
        first = self._next_number
        self._next_number += len(requests)
        stream = OutputStream(
            first,
            len(requests),
            on_abort=self._stream_aborted,
            num_prompt_tokens=num_tokens,
            budget=self._unread,
        )
        self._streams[first] = stream
        for index in range(len(requests)):
            self._targets[first + index] = StreamTarget(stream, index)
        self._host.send(AddRequests(first, tuple(requests), self._outbox_of(stream.loop)))
        return stream

    async def look_up_cache(self, request: GenerationRequest) -> CacheExplanation:
        """Explain what the prefix cache has of a request's prompt now; starts and changes nothing.

        Raises as generate() does.
        """
        self._raise_if_unavailable()
        self.limits.check(request)
        self._lookups = {n: one for n, one in self._lookups.items() if not one.get_loop().is_closed()}
        if len(self._lookups) >= _MAX_LOOKUPS:
            raise QueueFullError(f"{_MAX_LOOKUPS} lookups of the cache are open already")
        number, loop = self._next_number, asyncio.get_running_loop()
        self._next_number += 1
        future: asyncio.Future[CacheExplanation] = loop.create_future()
        self._lookups[number] = future  # until the engine has answered, whether or not anybody waits
        self._host.send(LookUpCache(number, request, self._outbox_of(loop)))
        return await future

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> None:
        """Compile a grammar before a request needs it, so that the request need not wait.

        Blocks, perhaps for seconds: call it from a worker thread. Raises RequestError, CancelledError.
        """
        self._host.compile_grammar(spec, cancellation)

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters, without waiting for the engine."""
        stats = self._host.stats
        if self.is_dead:
            return stats._replace(num_requests_running=0, num_requests_waiting=0, step_started=None)
        return stats._replace(num_requests_waiting=max(0, self._num_open() - stats.num_requests_running))

    async def drain(self, timeout: float) -> bool:
        """Refuse new work and wait for what is open; after `timeout` seconds end the rest with an error.

        Returns True when everything finished by itself.
        """
        self._refuse(EngineUnavailableError("the server is shutting down"))
        self._all_ended = asyncio.Event()
        if self._living_streams():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), timeout)
        streams = self._living_streams()
        for stream in streams:
            stream.abort()
            stream.fail(EngineUnavailableError("the server shut down before the answer was complete"))
        return not streams

    def close(self, timeout: float | None = None) -> bool:
        """End the engine after its present step; open streams end with an error.

        Returns False if the step does not end within `timeout` seconds: then only the process can end it.
        """
        error = EngineUnavailableError("the engine is closed")
        self._refuse(error)
        has_ended = self._host.close(timeout)
        self._fail_streams(self._error or error)
        return has_ended

    def _raise_if_unavailable(self) -> None:
        if self._host.death is not None:
            raise EngineDeadError(f"the engine died: {self._host.death}")
        if self._error is not None:
            raise self._error
        if self._host.is_restarting:
            raise EngineRestartingError("the engine failed and is being restarted")

    def _refuse(self, error: EngineUnavailableError) -> None:
        self._error = self._error or error

    def _outbox_of(self, loop: asyncio.AbstractEventLoop) -> int:
        number = self._outboxes.get(loop)
        if number is None:
            self._outboxes = {old: n for old, n in self._outboxes.items() if not old.is_closed()}
            outbox = Outbox(loop, self._take, interval=self._host.stream_interval)
            number = self._outboxes[loop] = self._host.connect(outbox)
        return number

    def _check_queue(self, num_requests: int, num_tokens: int) -> None:
        num_open = self._num_open()
        if num_open + num_requests > self._max_open:
            raise QueueFullError(
                f"the queue is full: {num_open} requests are open, {num_requests} more would exceed "
                f"the limit of {self._max_open}"
            )
        if self._max_open_tokens is None:
            return
        open_tokens = sum(stream.num_prompt_tokens for stream in self._living_streams())
        if open_tokens and open_tokens + num_tokens > self._max_open_tokens:
            raise QueueFullError(
                f"the queue is full: prompts of {open_tokens} tokens are open, {num_tokens} more would "
                f"exceed the limit of {self._max_open_tokens}"
            )

    def _num_open(self) -> int:
        return sum(stream.num_open for stream in self._living_streams())

    def _living_streams(self) -> list[OutputStream]:
        """Return the open streams, and forget those whose event loop was closed: it will never ask again."""
        for stream in list(self._streams.values()):
            if stream.loop.is_closed():
                self._forget(stream)
        return list(self._streams.values())

    def _stream_aborted(self, stream: OutputStream, indices: Iterable[int]) -> None:
        """Tell the engine that nobody waits for these requests any more; called by the stream."""
        numbers = tuple([stream.first_number + index for index in indices])
        self._host.send(AbortRequests(numbers))
        for number in numbers:
            self._targets.pop(number, None)
        self._forget_if_ended(stream)

    def _forget_if_ended(self, stream: OutputStream) -> None:
        if stream.num_open == 0:
            self._forget(stream)
        if not self._streams and self._all_ended is not None:
            self._all_ended.set()

    def _forget(self, stream: OutputStream) -> None:
        if self._streams.pop(stream.first_number, None) is not None:
            for index in range(stream.num_requests):
                self._targets.pop(stream.first_number + index, None)

    def _take(self, messages: Sequence[FromEngine]) -> None:
        """Hand outputs to their streams, a request's tokens together; runs on the event loop."""
        touched: list[StreamTarget] = []
        for message in messages:
            if isinstance(message, StepResults):
                self._take_results(message, touched)
        for target in touched:
            target.flush()
        for unread in self._unread.overflowing(time.monotonic()):
            self._drop(unread)
        for message in messages:
            if isinstance(message, RequestsRefused):
                self._fail_requests(message)
            elif isinstance(message, CacheLookedUp):
                self._answer_lookup(message)
            elif isinstance(message, EngineDied):
                self._fail_streams(_failure(message))

    def _drop(self, stream: OutputStream) -> None:
        """End a stream whose reader is too slow for what waits to fit in memory."""
        stream.drop(SlowReaderError("the answer was not read as fast as it came, and was ended"))

    def _take_results(self, results: StepResults, touched: list[StreamTarget]) -> None:
        targets, step = self._targets, results.step
        for number, token_ids in results.tokens:
            target = targets.get(number)
            if target is None:
                continue  # aborted
            if not target.token_ids:
                touched.append(target)
            target.token_ids += token_ids
            target.steps.append(step)
        for number, output in results.outputs:
            target = targets.get(number)
            if target is not None:
                target.deliver(output)
                if output.finish_reason is not None:
                    self._forget_if_ended(target.stream)

    def _fail_requests(self, refused: RequestsRefused) -> None:
        for stream in {self._targets[n].stream for n in refused.numbers if n in self._targets}:
            stream.fail(RequestError(refused.reason, param=refused.param))
            self._forget_if_ended(stream)

    def _answer_lookup(self, answer: CacheLookedUp) -> None:
        future = self._lookups.pop(answer.number, None)
        if future is not None and not future.done():
            future.set_result(answer.explanation)

    def _fail_streams(self, error: EngineUnavailableError) -> None:
        for stream in self._living_streams():
            stream.fail(error)
        self._streams.clear()
        self._targets.clear()
        for future in self._lookups.values():
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(error)
        self._lookups.clear()
        if self._all_ended is not None:
            self._all_ended.set()


def _failure(died: EngineDied) -> EngineUnavailableError:
    if died.is_restarting:
        return EngineRestartingError("the engine failed while this request was open, and is being restarted")
    return EngineDeadError(f"the engine died: {died.reason}")
