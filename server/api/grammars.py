"""Grammars are compiled beside the event loop, the slow ones a few at a time and fairly."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from engine.interface.cancellation import Cancellation
from engine.interface.engine_client import EngineClient
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from server.fair_turns import FairTurns

_T = TypeVar("_T")
_REFUSAL_SECONDS = 600.0  # it may have been the machine that was too slow
_SHORT = 4096  # characters of a list of choices that compiles in no time


@dataclass(frozen=True, kw_only=True)
class RequestedGrammar:
    """A grammar and the field that asked for it."""

    field: str
    spec: GrammarSpec


class GrammarCompilerPool:
    """Lets a grammar through to the engine once it compiles.

    At most `max_threads` grammars that were never seen compile at the same time, each tenant's in its turn.
    Past them go grammars that compiled before, for the engine still has them, and those that cannot be slow;
    what was refused is refused at once for ten minutes. Who leaves ends what is compiled for nobody else.
    """

    def __init__(self, *, max_threads: int = 3, max_known: int = 64, max_refused: int = 1024) -> None:
        self._executor = ThreadPoolExecutor(max_threads, thread_name_prefix="grammar")
        self._turns = FairTurns(max_threads)
        self._max_known, self._max_refused = max_known, max_refused
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # why, and until when
        self._jobs: dict[tuple[bytes, bytes], _Job] = {}  # by tenant and grammar

    async def compile(self, engine: EngineClient, grammar: RequestedGrammar, *, tenant: bytes) -> None:
        """Wait until the engine has compiled the grammar.

        Raises RequestError naming the field, ApiError 429 where the tenant's grammars take too long.
        """
        key = _digest(grammar.spec)
        reason, until = self._refused.get(key, ("", 0.0))
        if time.monotonic() < until:
            raise RequestError(reason, param=grammar.field)
        try:
            if key in self._known or _is_harmless(grammar.spec):
                await asyncio.to_thread(engine.compile_grammar, grammar.spec, Cancellation())
            else:
                await self._join(engine, grammar.spec, (tenant, key))
        except RequestError as error:
            until = time.monotonic() + _REFUSAL_SECONDS
            _remember(self._refused, key, (str(error), until), self._max_refused)
            raise RequestError(str(error), param=grammar.field) from None
        _remember(self._known, key, None, self._max_known)

    async def _join(self, engine: EngineClient, spec: GrammarSpec, key: tuple[bytes, bytes]) -> None:
        """Wait for the one job of all who want the same; the last who leaves ends it."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(asyncio.ensure_future(self._take_turn(engine, spec, key[0])))
            job.task.add_done_callback(lambda _: self._forget(key, job))
        job.num_waiting += 1
        try:
            await asyncio.shield(job.task)
        finally:
            job.num_waiting -= 1
            if job.num_waiting == 0:
                self._forget(key, job)
                job.task.cancel()

    def _forget(self, key: tuple[bytes, bytes], job: "_Job") -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]

    async def _take_turn(self, engine: EngineClient, spec: GrammarSpec, tenant: bytes) -> None:
        """Compile on a thread; the turn is over when the thread is free again."""
        async with self._turns.turn(tenant):
            cancellation = Cancellation()
            work = asyncio.get_running_loop().run_in_executor(
                self._executor, engine.compile_grammar, spec, cancellation
            )
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                cancellation.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise


@dataclass
class _Job:
    task: "asyncio.Task[None]"
    num_waiting: int = 0


def _is_harmless(spec: GrammarSpec) -> bool:
    """Tell whether a grammar compiles in no time, whatever it says."""
    is_short = spec.kind is GrammarKind.CHOICE and len(spec.source) <= _SHORT
    return is_short or spec.kind is GrammarKind.JSON_OBJECT


def _digest(spec: GrammarSpec) -> bytes:
    source = spec.source.encode(errors="surrogatepass")
    return blake2b(source, digest_size=16, person=spec.kind.value.encode()).digest()


def _remember(recent: OrderedDict[bytes, _T], key: bytes, value: _T, limit: int) -> None:
    """Keep an outcome, and the last so many of others."""
    recent[key] = value
    recent.move_to_end(key)
    if len(recent) > limit:
        recent.popitem(last=False)
