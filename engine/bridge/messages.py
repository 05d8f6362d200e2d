"""What crosses between an event loop and the engine: plain data, requests by number, both ways.

The client numbers its requests; the outputs of request n go to the outbox that its message names.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.interface.cache_explanation import CacheExplanation
from engine.interface.outputs import GenerationRequest, RequestOutput


class AddRequests(NamedTuple):
    """Start requests; the first has the number `first`, the next follow."""

    first: int
    generations: tuple[GenerationRequest, ...]
    outbox: int


class AbortRequests(NamedTuple):
    """End requests now, in whatever state they are; numbers that ended already change nothing."""

    numbers: tuple[int, ...]


class LookUpCache(NamedTuple):
    """Explain what the prefix cache has of a prompt; nothing is started."""

    number: int
    generation: GenerationRequest
    outbox: int


class CloseEngine(NamedTuple):
    """End after the present step."""


ToEngine = AddRequests | AbortRequests | LookUpCache | CloseEngine


@dataclass(slots=True)
class StepResults:
    """What one step brought for the requests of one outbox."""

    step: int
    tokens: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """(number, token ids) where there is nothing else to say: no first token, no end, no scores, no draft."""
    outputs: list[tuple[int, RequestOutput]] = field(default_factory=list)
    is_urgent: bool = False  # a first token or an end is among them


class RequestsRefused(NamedTuple):
    """Requests that cannot run: their grammar does not compile."""

    numbers: tuple[int, ...]
    reason: str
    param: str | None


class CacheLookedUp(NamedTuple):
    """The answer to a LookUpCache."""

    number: int
    explanation: CacheExplanation


class EngineDied(NamedTuple):
    """The engine failed: whatever was open is lost; it may be started again."""

    reason: str
    is_restarting: bool = False


FromEngine = StepResults | RequestsRefused | CacheLookedUp | EngineDied
