"""Speculation as plain data: what a request may ask for and what it is told."""

from dataclasses import dataclass
from enum import Enum

from engine.interface.errors import RequestError

MAX_DRAFT_TOKENS = 16


class SpeculationMode(str, Enum):
    """Where draft tokens may come from; none of them changes a token of the answer."""

    OFF = "off"
    AUTO = "auto"  # any source, any length, whatever promises the most tokens per second
    DRAFT = "draft"  # the draft model
    NGRAM = "ngram"  # what followed the latest tokens before, here or in an earlier answer


class DraftSource(str, Enum):
    """Who proposed a draft."""

    DRAFT_MODEL = "draft"
    NGRAM = "ngram"  # the request's own tokens
    NGRAM_POOL = "ngram_pool"  # answers that ended earlier, of the same tenant
    GRAMMAR = "grammar"  # the only tokens that the grammar allows


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationParams:
    """What a request wants of speculation; raises RequestError.

    With the mode `draft` or `ngram`, `k` is how many tokens to draft in each step, as far as the source has
    any. With `auto`, or without `k`, the controller decides and `k` is a limit.
    """

    mode: SpeculationMode | None = None  # None: the engine's default
    k: int | None = None

    def __post_init__(self) -> None:
        """Check the range of k."""
        if self.k is not None and not 1 <= self.k <= MAX_DRAFT_TOKENS:
            raise RequestError(
                f"speculation.k must be between 1 and {MAX_DRAFT_TOKENS}, got {self.k}", param="speculation.k"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationOutput:
    """What speculation did in one step of one request, and the time it has saved the request so far.

    A step's tokens are `num_accepted_tokens` draft tokens and then, unless the request ended before it, one
    token of the target's own: a bonus if all drafts were accepted, else the correction of the first that
    was not.
    """

    source: DraftSource | None  # None: this step had no draft
    num_draft_tokens: int
    num_accepted_tokens: int
    seconds: float  # of all steps since the first token
    plain_seconds: float  # what as many tokens would have taken one by one, by the measured costs


NOT_SPECULATING = SpeculationParams(mode=SpeculationMode.OFF)
