"""Executor: the device's side of a step; batches go in, tokens come out."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.core.rows import RowCursor
from engine.interface.batch import Batch, Continuation, SamplerOutput


class PendingStep(Protocol):
    """A step that was launched."""

    def result(self) -> SamplerOutput:
        """Wait for the step and return what it chose."""


class FinishedStep(NamedTuple):
    """A step that was over when its launch returned."""

    output: SamplerOutput

    def result(self) -> SamplerOutput:
        """Return what it chose."""
        return self.output


class DraftJob(NamedTuple):
    """What the draft model is to guess for one request.

    Not plain data: a request that looks back is asked, through its cursor, what each draft means for the
    row after it.
    """

    token_ids: tuple[int, ...]  # that the draft model has not computed yet, up to the request's last
    first_position: int  # of these
    block_ids: tuple[int, ...]
    length: int  # of the draft, at most; 0: the model only reads
    cursor: RowCursor


class DraftPass(NamedTuple):
    """What it took to run the draft model over some tokens, then `num_steps - 1` times over one a request."""

    num_tokens: int
    num_requests: int
    num_steps: int
    seconds: float


class DraftOutput(NamedTuple):
    """What the draft model guessed, and what it took."""

    token_ids: tuple[tuple[int, ...], ...]  # of each job
    passes: tuple[DraftPass, ...] = ()


class Executor(Protocol):
    """Runs batches over the models, keys and values of one device.

    A batch may be launched while up to `steps_ahead` others are under way. Tokens that these are still
    choosing stand in it as PENDING_TOKEN. An executor that `continues` is also given continuations, each of
    the launch just before it; after a step that failed comes a whole batch.
    """

    steps_ahead: int
    continues: bool
    max_draft_positions: int  # that the draft model knows; 0 where there is none

    def launch(self, batch: Batch | Continuation) -> PendingStep:
        """Make the batch's copies, run its tokens, score and pool prompts, choose a token for each row."""

    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens with the draft model, whose storage has the target's block ids."""
