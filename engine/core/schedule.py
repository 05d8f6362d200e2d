"""Schedule: the next step while it is being put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.request import Request
from engine.core.steady_decoding import SteadyDecoding
from engine.interface.batch import BlockCopy

_LONGEST = 2**40  # tokens, more than any context


@dataclass(slots=True)
class Claim:
    """A request's part in the step: its next `num_tokens` tokens, and drafts behind them.

    Of the drafts, the last `num_model_drafts` have their slots but are still to be made by the draft model.
    """

    request: Request
    num_tokens: int
    draft_token_ids: tuple[int, ...] = ()
    num_model_drafts: int = 0


@dataclass(slots=True)
class Schedule:
    """Who takes part in the next step, and what must be copied first.

    A step that is a continuation has no claims: the requests of the step before take part in it.
    """

    claims: list[Claim] = field(default_factory=list)
    block_copies: list[BlockCopy] = field(default_factory=list)
    continued: SteadyDecoding | None = None
    new_blocks: tuple[tuple[int, int], ...] = ()  # of a continuation, as what follows
    ended: tuple[int, ...] = ()

    @property
    def request_ids(self) -> Sequence[int]:
        """The requests that take part, none if there is nothing to do."""
        if self.continued is not None:
            return self.continued.request_ids
        return [claim.request.request_id for claim in self.claims]


def layout_key(claim: Claim) -> int:
    """Single tokens first, longest context first: their rows are then consecutive for attention."""
    is_longer = claim.num_tokens > 1 or claim.draft_token_ids or claim.num_model_drafts
    return (_LONGEST if is_longer else 0) - claim.request.num_computed_tokens
