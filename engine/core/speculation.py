"""What the engine needs of speculation, and none of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from engine.core.executor import Executor
from engine.core.request import Request
from engine.core.schedule import Claim
from engine.core.speculation_counters import SpeculationCounters
from engine.core.step_output import StepOutput
from engine.interface.batch import Batch, Continuation
from engine.interface.speculation import SpeculationMode, SpeculationParams


class Speculation(Protocol):
    """Proposes drafts before a step and learns after it (engine/speculative/speculator.py)."""

    counters: SpeculationCounters

    def resolve(self, params: SpeculationParams) -> SpeculationParams:
        """Return what a request asks for with the default mode filled in."""

    def propose(self, running: Sequence[Request]) -> None:
        """Give drafts to requests that are one token behind, as far as they promise to pay."""

    def make_drafts(self, claims: Sequence[Claim], executor: Executor) -> None:
        """Have the draft model make the drafts that have their slots."""

    def record(
        self,
        batch: Batch | Continuation,
        outputs: Sequence[StepOutput],
        *,
        drafting: float,
        target: float,
        between: float,
    ) -> None:
        """Learn from a step and fill in the outputs' `speculation`; times in seconds."""

    def forget(self, request: Request) -> None:
        """Drop what was kept for a request that ended."""


class NoSpeculation:
    """Proposes nothing, whatever a request asks for."""

    def __init__(self) -> None:
        self.counters = SpeculationCounters()

    def resolve(self, params: SpeculationParams) -> SpeculationParams:
        """Return what a request asks for; off is the default."""
        return replace(params, mode=params.mode or SpeculationMode.OFF)

    def propose(self, running: Sequence[Request]) -> None:
        """Do nothing."""

    def make_drafts(self, claims: Sequence[Claim], executor: Executor) -> None:
        """Do nothing."""

    def record(
        self,
        batch: Batch | Continuation,
        outputs: Sequence[StepOutput],
        *,
        drafting: float,
        target: float,
        between: float,
    ) -> None:
        """Do nothing."""

    def forget(self, request: Request) -> None:
        """Do nothing."""
