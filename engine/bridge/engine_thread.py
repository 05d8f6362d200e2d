"""EngineThread: runs an Engine in a thread of its own, from messages to messages.

Messages are drained between steps. Outwards there is an Outbox for each event loop: no consumer, however
slow, holds up a step.
"""

import contextlib
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from engine.bridge.messages import (
    AbortRequests,
    AddRequests,
    CacheLookedUp,
    CloseEngine,
    EngineDied,
    FromEngine,
    LookUpCache,
    RequestsRefused,
    StepResults,
    ToEngine,
)
from engine.core.engine import CompiledGrammar, Engine
from engine.core.request import Request
from engine.core.step_output import StepOutput, StepTokens
from engine.interface.cancellation import Cancellation
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.outputs import FinishReason, GenerationRequest, RequestOutput
from engine.interface.stats import EngineStats

logger = logging.getLogger(__name__)

_PAUSE = 0.002  # seconds between two looks whether blocks can be saved


class MessageSink(Protocol):
    """What takes messages from the engine thread: an Outbox, or a socket's."""

    def put(self, items: Sequence[FromEngine], *, is_urgent: bool) -> bool:
        """Take items; False if nobody will ever want them."""


class _Route(NamedTuple):
    """Where the outputs of a request go."""

    request: Request
    number: int
    place: int  # among the requests of its message
    outbox: int


class _Share(NamedTuple):
    """What one outbox gets of steps that bring the same requests a token each."""

    outbox: int
    rows: list[int]
    numbers: list[int]  # of their requests


class _Compiled(NamedTuple):
    """Requests whose grammars had to be compiled first, or why they cannot be."""

    message: AddRequests
    grammars: tuple[CompiledGrammar | None, ...]
    error: RequestError | None = None


class EngineThread:
    """Owns the engine; another thread sends messages, connects outboxes and reads `stats`."""

    is_restarting = False

    def __init__(
        self, engine: Engine, *, stream_interval: float = 0.0, info: EngineInfo | None = None
    ) -> None:
        self.info, self.limits = info, engine.limits
        self.max_num_seqs = engine.scheduler.max_num_seqs
        self.stream_interval = stream_interval
        self._engine = engine
        self._inbox: queue.SimpleQueue[ToEngine | _Compiled] = queue.SimpleQueue()
        self._outboxes: dict[int, MessageSink] = {}
        self._outbox_numbers = itertools.count()
        self._routes: dict[int, _Route] = {}  # by the engine's request id
        self._by_number: dict[int, _Route] = {}
        self._together: Sequence[Request] = ()  # the latest step brought just these a token each
        self._shares: list[_Share] = []  # of theirs
        self._compiling: set[int] = set()  # numbers of requests that wait for their grammars
        self._named: Sequence[int] = ()  # request ids whose numbers were asked for the latest
        self._numbers: list[int] = []
        self._lookups: deque[LookUpCache] = deque()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._death: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def death(self) -> str | None:
        """Why the engine died; None while it lives."""
        return self._death

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot, never older than the beginning of the present step."""
        return self._engine.latest_stats

    def connect(self, outbox: MessageSink) -> int:
        """Add an outbox and return its number."""
        number = next(self._outbox_numbers)
        self._outboxes[number] = outbox
        return number

    def check(self, generations: Sequence[GenerationRequest]) -> None:
        """Raise nothing: an engine that fails in this process is not started again."""

    def numbers_of(self, request_ids: Sequence[int]) -> Sequence[int]:
        """Return the client's numbers of requests, the same object for the same; for the engine's thread."""
        if request_ids is not self._named:
            self._named = request_ids
            self._numbers = [self._routes[request_id].number for request_id in request_ids]
        return self._numbers

    def send(self, message: ToEngine) -> None:
        """Put a message into the inbox; messages are taken in order."""
        self._inbox.put(message)

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> None:
        """Compile a grammar on the calling thread, so that requests find it.

        Raises RequestError, CancelledError.
        """
        self._engine.compile_grammar(spec, cancellation)

    def close(self, timeout: float | None = None) -> bool:
        """End the thread after its present step; False if that takes longer than `timeout` seconds."""
        self.send(CloseEngine())
        self._thread.join(timeout)
        self._compiler.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            return False
        self._engine.close()
        return True

    # Below: the engine thread.

    def _run(self) -> None:
        try:
            while self._drain_inbox():
                if self._lookups:
                    self._look_up(self._lookups.popleft())
                self._deliver(self._engine.step(), self._engine.num_steps)
        except BaseException as error:  # a panic of a native library, too: every open request must hear of it
            logger.exception("the engine died")
            self._death = f"{type(error).__name__}: {error}"
            for outbox in list(self._outboxes.values()):
                outbox.put((EngineDied(self._death),), is_urgent=True)

    def _drain_inbox(self) -> bool:
        """Take in every message, waiting for one if there is no work; False when it is time to end."""
        while True:
            try:
                message = self._next_message()
            except queue.Empty:
                return True
            if isinstance(message, CloseEngine):
                return False
            if isinstance(message, AbortRequests):
                self._abort(message.numbers)
            elif isinstance(message, _Compiled):
                self._take_compiled(message)
            elif isinstance(message, LookUpCache):
                self._lookups.append(message)  # answered one between two steps: hashing may take milliseconds
            else:
                self._find_grammars(message)

    def _next_message(self) -> "ToEngine | _Compiled":
        """Return a message; without work wait for one, and save cached blocks meanwhile.

        Raises queue.Empty where there is work and no message.
        """
        while not self._has_work and self._engine.write_back():
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=_PAUSE)
        return self._inbox.get(block=not self._has_work)

    @property
    def _has_work(self) -> bool:
        return self._engine.has_work or bool(self._lookups)

    def _look_up(self, message: LookUpCache) -> None:
        explanation = self._engine.look_up_cache(message.generation)
        self._put(message.outbox, CacheLookedUp(message.number, explanation), is_urgent=True)

    def _find_grammars(self, message: AddRequests) -> None:
        """Add requests whose grammars are compiled; others once they are, which no step waits for."""
        self._compiling.update(_numbers(message))
        grammars, are_complete = [], True
        for generation in message.generations:
            spec = generation.params.grammar
            grammars.append(None if spec is None else self._engine.find_grammar(spec))
            are_complete &= spec is None or grammars[-1] is not None
        if are_complete:
            self._add(message, grammars)
        else:
            self._compiler.submit(self._compile, message)

    def _compile(self, message: AddRequests) -> None:
        """Compile what a message needs; runs in a thread of its own."""
        specs = [generation.params.grammar for generation in message.generations]
        try:
            grammars = tuple(None if spec is None else self._engine.compile_grammar(spec) for spec in specs)
        except RequestError as error:
            self._inbox.put(_Compiled(message, (), error))
        except BaseException:  # the requests must not wait for ever
            logger.exception("a grammar did not compile")
            self._inbox.put(_Compiled(message, (), RequestError("the grammar cannot be compiled")))
        else:
            self._inbox.put(_Compiled(message, grammars))

    def _take_compiled(self, compiled: _Compiled) -> None:
        message, error = compiled.message, compiled.error
        if error is None:
            self._add(message, compiled.grammars)
            return
        self._compiling.difference_update(_numbers(message))
        refused = RequestsRefused(tuple(_numbers(message)), str(error), error.param)
        self._put(message.outbox, refused, is_urgent=True)

    def _add(self, message: AddRequests, grammars: Sequence[CompiledGrammar | None]) -> None:
        for index, generation in enumerate(message.generations):
            number = message.first + index
            if number not in self._compiling:
                continue  # aborted meanwhile
            self._compiling.remove(number)
            request = self._engine.add_request(generation, grammar=grammars[index])
            route = _Route(request, number, index, message.outbox)
            self._routes[request.request_id] = self._by_number[number] = route

    def _abort(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._compiling.discard(number)
            route = self._by_number.get(number)
            if route is not None:
                self._engine.abort(route.request)
                self._forget(route)

    def _forget(self, route: _Route) -> None:
        del self._by_number[route.number]
        del self._routes[route.request.request_id]

    def _deliver(self, outputs: Sequence[StepOutput], step: int) -> None:
        """Put what a step brought into the outboxes."""
        if isinstance(outputs, StepTokens):
            self._deliver_tokens(outputs, step)
            return
        self._together, self._shares = (), []
        results: dict[int, StepResults] = {}
        current, mine = -1, StepResults(step)
        for output in outputs:
            route = self._routes[output.request.request_id]
            if route.outbox != current:
                current = route.outbox
                mine = results.setdefault(current, StepResults(step))
            if _says_only_tokens(output):
                mine.tokens.append((route.number, output.token_ids))
                continue
            result = _request_output(output, route.place, step)
            mine.outputs.append((route.number, result))
            mine.is_urgent |= result.is_first or result.finish_reason is not None
            if result.finish_reason is not None:
                self._forget(route)
        for number, one in results.items():
            self._put(number, one, is_urgent=one.is_urgent)

    def _deliver_tokens(self, tokens: StepTokens, step: int) -> None:
        if tokens.requests is not self._together:
            self._together, self._shares = tokens.requests, self._share(tokens.requests)
        for outbox, rows, numbers in self._shares:
            mine = [tokens.token_ids[row] for row in rows]
            pairs = list[tuple[int, tuple[int, ...]]](zip(numbers, zip(mine, strict=True), strict=True))
            self._put(outbox, StepResults(step, pairs), is_urgent=False)

    def _share(self, requests: Sequence[Request]) -> list[_Share]:
        """Find out who gets what of steps that bring each of these requests a token."""
        shares: dict[int, _Share] = {}
        for row, request in enumerate(requests):
            route = self._routes[request.request_id]
            mine = shares.setdefault(route.outbox, _Share(route.outbox, [], []))
            mine.rows.append(row)
            mine.numbers.append(route.number)
        return list(shares.values())

    def _put(self, number: int, message: FromEngine, *, is_urgent: bool) -> None:
        """Put a message into an outbox; if its event loop is gone, nobody will ever abort its requests."""
        outbox = self._outboxes.get(number)
        if outbox is not None and not outbox.put((message,), is_urgent=is_urgent):
            del self._outboxes[number]
            self._abort([route.number for route in self._routes.values() if route.outbox == number])


def _numbers(message: AddRequests) -> range:
    return range(message.first, message.first + len(message.generations))


def _says_only_tokens(output: StepOutput) -> bool:
    """Tell whether a step brought tokens and nothing else, and not a request's first ones."""
    return (
        output.request.finish_reason is None
        and output.speculation is None
        and not output.logprobs
        and not output.is_first
    )


def _embedding(request: Request) -> bytes | None:
    """Return what a prompt was pooled to, once all of it is."""
    is_whole = request.pooled_sum is not None and request.finish_reason is FinishReason.LENGTH
    return request.pooled_sum.mean() if is_whole and request.pooled_sum is not None else None


def _request_output(output: StepOutput, index: int, step: int) -> RequestOutput:
    request = output.request
    last = output.token_ids[-1] if output.token_ids else None
    # An answer that a grammar completed ends with `stop` on a token that is part of it.
    stopped = request.finish_reason is FinishReason.STOP and last in request.stop_token_ids
    wants_scores = request.params.prompt_logprobs is not None
    return RequestOutput(
        index=index,
        new_token_ids=output.token_ids,
        logprobs=output.logprobs,
        prompt_logprobs=tuple(request.prompt_logprobs) if output.is_first and wants_scores else None,
        embedding=_embedding(request),
        num_cached_tokens=request.num_cached_tokens,
        cache_explanation=request.cache_explanation if output.is_first else None,
        is_first=output.is_first,
        finish_reason=request.finish_reason,
        is_step_error=request.is_step_error,
        stop_token_id=last if stopped else None,
        queue_seconds=request.queue_seconds,
        steps=(step,) * len(output.token_ids),
        speculation=output.speculation,
    )
