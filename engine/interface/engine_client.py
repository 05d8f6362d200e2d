"""EngineClient: what a server needs of an engine, wherever that runs."""

from collections.abc import Sequence
from typing import Protocol

from engine.interface.cache_explanation import CacheExplanation
from engine.interface.cancellation import Cancellation
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.limits import EngineLimits
from engine.interface.outputs import GenerationRequest, RequestOutput
from engine.interface.stats import EngineStats


class OutputStream(Protocol):
    """The outputs of the requests of one generate() call, as an async iterator on one event loop.

    Ends after each request has had its final output. Leaving early needs abort(), best in a `finally`;
    aborting what has ended changes nothing.
    """

    @property
    def num_open(self) -> int:
        """Number of requests that have not ended yet."""

    def __aiter__(self) -> "OutputStream": ...

    async def __anext__(self) -> RequestOutput:
        """Return the next output.

        Raises EngineUnavailableError if the engine ended first, RequestError for a grammar that was not
        compiled before and does not compile.
        """

    def get_ready(self) -> list[RequestOutput]:
        """Return, without waiting, the outputs that are already here."""

    def abort(self, index: int | None = None) -> None:
        """End one request, or all of them, now; what was under way brings no further output."""

    def end(self, error: Exception) -> None:
        """End all requests now, and the stream with an error after what is here already."""


class EngineClient(Protocol):
    """An engine as its event loop sees it; what goes in and comes out is frozen plain data.

    Every request ends exactly once, with a finish reason or with one error. Methods belong to the event
    loop's thread but for compile_grammar().
    """

    @property
    def info(self) -> EngineInfo | None:
        """What was chosen at start-up."""

    @property
    def limits(self) -> EngineLimits:
        """What a request may ask."""

    @property
    def is_dead(self) -> bool:
        """True after a step raised; nothing can run any more."""

    @property
    def is_restarting(self) -> bool:
        """True after a failure, until the engine takes work again."""

    def generate(self, requests: Sequence[GenerationRequest]) -> OutputStream:
        """Start all of the requests or none.

        Raises RequestError for one that can never run, StepError, QueueFullError, EngineUnavailableError.
        """

    async def look_up_cache(self, request: GenerationRequest) -> CacheExplanation:
        """Explain what the prefix cache has of a request's prompt now; starts and changes nothing.

        Raises as generate() does.
        """

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> None:
        """Compile a grammar before a request needs it; blocks, perhaps for seconds.

        Raises RequestError, and CancelledError once `cancellation` says so.
        """

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters, without waiting for the engine."""

    async def drain(self, timeout: float) -> bool:
        """Refuse new work and wait for what is open; after `timeout` seconds end the rest with an error.

        Returns True when everything finished by itself.
        """

    def close(self, timeout: float | None = None) -> bool:
        """End the engine after its present step; open streams end with an error.

        Returns False if the step does not end within `timeout` seconds: then only the process can end it.
        """
