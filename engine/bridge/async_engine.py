"""AsyncEngine: the bridge between an asyncio event loop and the engine thread.

Requests and outputs are frozen data. Inwards: messages in one queue, drained between steps; they also name
the stream and the compiled grammars, which both threads see. Outwards: an Outbox for each loop, whose content
is appended to each stream's list; no consumer, however slow, holds up a step.
A request belongs to the engine thread from the moment its message is taken.
"""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from engine.bridge.outbox import Outbox
from engine.bridge.output_stream import OutputStream, StreamTarget
from engine.core.engine import CompiledGrammar, Engine
from engine.core.request import Request
from engine.core.step_output import StepOutput
from engine.interface.errors import EngineDeadError, EngineUnavailableError, QueueFullError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.outputs import FinishReason, GenerationRequest, RequestOutput
from engine.interface.stats import EngineStats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Add:
    stream: OutputStream
    generations: tuple[GenerationRequest, ...]
    grammars: tuple[CompiledGrammar | None, ...]


@dataclass(frozen=True, slots=True)
class _Abort:
    stream: OutputStream
    indices: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Close:
    """Ends the engine thread."""


_Item = tuple[StreamTarget, tuple[int, ...], int, RequestOutput | None]
"""Tokens of a step, by number, and the whole output if there is more to say."""


class AsyncEngine:
    """Runs an Engine in a thread of its own; every method belongs to the event loop's thread.

    Outputs of a stream are `stream_interval` seconds apart, but for first and last ones: tokens that come
    sooner are delivered together.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int,
        stream_interval: float = 0.0,
        info: EngineInfo | None = None,
    ) -> None:
        self.info = info
        self.limits = engine.limits
        self._engine = engine
        self._max_open = engine.scheduler.max_num_seqs + max_waiting
        self._inbox: queue.SimpleQueue[_Add | _Abort | _Close] = queue.SimpleQueue()
        self._stream_ids = itertools.count()
        self._streams: dict[int, OutputStream] = {}
        self._error: EngineUnavailableError | None = None
        self._all_ended: asyncio.Event | None = None  # set while draining, when no stream is left
        self._stream_interval = stream_interval
        # The engine thread's own: where each request's outputs go.
        self._requests: dict[tuple[int, int], Request] = {}
        self._targets: dict[int, StreamTarget] = {}
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox[_Item]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_dead(self) -> bool:
        """True after a step raised; nothing can run any more."""
        return isinstance(self._error, EngineDeadError)

    def generate(self, requests: Sequence[GenerationRequest]) -> OutputStream:
        """Start all of the requests or none.

        Raises RequestError for one that can never run, QueueFullError, EngineUnavailableError.
        """
        if self._error is not None:
            raise self._error
        for generation in requests:
            self.limits.check(generation)
        self._check_queue(len(requests))
        grammars = tuple(self._compiled(generation) for generation in requests)
        stream = OutputStream(next(self._stream_ids), len(requests), on_abort=self._stream_aborted)
        self._streams[stream.stream_id] = stream
        self._inbox.put(_Add(stream, tuple(requests), grammars))
        return stream

    def compile_grammar(self, spec: GrammarSpec) -> None:
        """Compile a grammar before a request needs it, so that no step waits for it.

        Blocks, perhaps for seconds: call it from a worker thread. Raises RequestError.
        """
        self._engine.compile_grammar(spec)

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters, without waiting for the engine."""
        stats = self._engine.stats()
        return replace(stats, num_requests_waiting=max(0, self._num_open() - stats.num_requests_running))

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

    def close(self) -> None:
        """End the engine thread after its present step; open streams end with an error."""
        self._refuse(EngineUnavailableError("the engine is closed"))
        self._inbox.put(_Close())
        self._thread.join()
        self._fail_streams()
        self._engine.close()

    def _stream_aborted(self, stream: OutputStream, indices: Iterable[int]) -> None:
        """Tell the engine that nobody waits for these requests any more; called by the stream."""
        self._inbox.put(_Abort(stream, frozenset(indices)))
        self._forget_if_ended(stream)

    def _compiled(self, generation: GenerationRequest) -> CompiledGrammar | None:
        """Find the grammar that compile_grammar() compiled; the engine thread must never do that work."""
        spec = generation.params.grammar
        return None if spec is None else self._engine.compile_grammar(spec)

    def _check_queue(self, num_requests: int) -> None:
        num_open = self._num_open()
        if num_open + num_requests > self._max_open:
            raise QueueFullError(
                f"the queue is full: {num_open} requests are open, {num_requests} more would exceed "
                f"the limit of {self._max_open}"
            )

    def _num_open(self) -> int:
        return sum(stream.num_open for stream in self._living_streams())

    def _living_streams(self) -> list[OutputStream]:
        """Return the open streams, and forget those whose event loop was closed: it will never ask again."""
        for stream in list(self._streams.values()):
            if stream.loop.is_closed():
                self._streams.pop(stream.stream_id, None)
        return list(self._streams.values())

    def _refuse(self, error: EngineUnavailableError) -> None:
        self._error = self._error or error

    def _forget_if_ended(self, stream: OutputStream) -> None:
        if stream.num_open == 0:
            self._streams.pop(stream.stream_id, None)
        if not self._streams and self._all_ended is not None:
            self._all_ended.set()

    def _deliver(self, items: Sequence[_Item]) -> None:
        """Hand outputs to their streams, a request's tokens together; runs on the event loop."""
        touched: list[StreamTarget] = []
        for target, token_ids, step, output in items:
            if output is not None:
                target.deliver(output)
                if output.finish_reason is not None:
                    self._forget_if_ended(target.stream)
                continue
            if not target.token_ids:
                touched.append(target)
            target.token_ids += token_ids
            target.steps.append(step)
        for target in touched:
            target.flush()

    def _flush_and_fail(self, outbox: Outbox[_Item] | None) -> None:
        if outbox is not None:
            outbox.flush()
        self._fail_streams()

    def _fail_streams(self) -> None:
        assert self._error is not None
        for stream in self._living_streams():
            stream.fail(self._error)
        self._streams.clear()
        if self._all_ended is not None:
            self._all_ended.set()

    # Below: the engine thread.

    def _run(self) -> None:
        try:
            while self._drain_inbox():
                self._send(self._engine.step(), self._engine.num_steps)
        except Exception as error:  # whatever it was, every open request must hear of it
            logger.exception("the engine died")
            self._error = EngineDeadError(f"the engine died: {type(error).__name__}: {error}")
            for loop in {stream.loop for stream in list(self._streams.values())}:
                _call_on_loop(loop, self._flush_and_fail, self._outboxes.get(loop))

    def _drain_inbox(self) -> bool:
        """Take in every message, waiting for one if there is no work; False when it is time to end."""
        while True:
            try:
                message = self._inbox.get(block=not self._engine.has_work)
            except queue.Empty:
                return True
            if isinstance(message, _Close):
                return False
            if isinstance(message, _Add):
                self._add(message)
            else:
                self._abort(message)

    def _add(self, message: _Add) -> None:
        pairs = zip(message.generations, message.grammars, strict=True)
        for index, (generation, grammar) in enumerate(pairs):
            request = self._engine.add_request(generation, grammar=grammar)
            self._requests[message.stream.stream_id, index] = request
            self._targets[request.request_id] = StreamTarget(message.stream, index)

    def _abort(self, message: _Abort) -> None:
        for index in message.indices:
            request = self._requests.pop((message.stream.stream_id, index), None)
            if request is not None:
                self._engine.abort(request)
                del self._targets[request.request_id]

    def _send(self, outputs: Sequence[StepOutput], step: int) -> None:
        """Put what a step brought into the outboxes of its event loops."""
        items: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        urgent = set[asyncio.AbstractEventLoop]()
        loop, mine = None, list[_Item]()
        for one in outputs:
            target = self._targets[one.request.request_id]
            if target.stream.loop is not loop:
                loop = target.stream.loop
                mine = items.setdefault(loop, [])
            if _says_only_tokens(one):
                mine.append((target, one.token_ids, step, None))
                continue
            output = _request_output(one, target.index, step)
            mine.append((target, (), step, output))
            if output.is_first or output.finish_reason is not None:
                urgent.add(loop)
            if output.finish_reason is not None:
                del self._targets[one.request.request_id]
                del self._requests[target.stream.stream_id, target.index]
        for loop, mine in items.items():
            self._put(loop, mine, is_urgent=loop in urgent)

    def _put(self, loop: asyncio.AbstractEventLoop, items: Sequence[_Item], *, is_urgent: bool) -> None:
        outbox = self._outboxes.get(loop)
        if outbox is None:
            outbox = Outbox(loop, self._deliver, interval=self._stream_interval)
            self._outboxes[loop] = outbox
        if not outbox.put(items, is_urgent=is_urgent):
            del self._outboxes[loop]
            for stream in {target.stream for target, *_ in items}:  # its loop is gone and will never abort
                indices = [index for stream_id, index in self._requests if stream_id == stream.stream_id]
                self._abort(_Abort(stream, frozenset(indices)))


def _says_only_tokens(step: StepOutput) -> bool:
    """Tell whether a step brought tokens and nothing else, and not a request's first ones."""
    request = step.request
    return (
        request.finish_reason is None
        and step.speculation is None
        and not step.logprobs
        and request.num_output_tokens > len(step.token_ids)
    )


def _request_output(step: StepOutput, index: int, step_number: int) -> RequestOutput:
    request = step.request
    last = step.token_ids[-1] if step.token_ids else None
    # An answer that a grammar completed ends with `stop` on a token that is part of it.
    stopped = request.finish_reason is FinishReason.STOP and last in request.stop_token_ids
    is_first = request.num_output_tokens == len(step.token_ids)
    wants_scores = request.params.prompt_logprobs is not None
    return RequestOutput(
        index=index,
        new_token_ids=step.token_ids,
        logprobs=step.logprobs,
        prompt_logprobs=tuple(request.prompt_logprobs) if is_first and wants_scores else None,
        num_cached_tokens=request.num_cached_tokens,
        is_first=is_first,
        finish_reason=request.finish_reason,
        stop_token_id=last if stopped else None,
        queue_seconds=request.queue_seconds,
        steps=(step_number,) * len(step.token_ids),
        speculation=step.speculation,
    )


def _call_on_loop(loop: asyncio.AbstractEventLoop, callback: object, *args: object) -> bool:
    """Run a callback on an event loop; False if the loop is closed."""
    assert callable(callback)
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True
