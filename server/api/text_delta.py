"""TextDelta: what one step added to one choice."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.outputs import FinishReason, TokenLogprobs
from server.api.speculation import TokenProvenance
from server.api.token_scores import ScoredToken


@dataclass(slots=True, kw_only=True)
class TextDelta:
    """What one step added to one choice; `finish_reason` is set once, on its last delta."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: Sequence[ScoredToken] = ()  # of the tokens whose text is complete now
    provenance: Sequence[TokenProvenance] = ()  # of token_ids, if asked for
    prompt_logprobs: Sequence[TokenLogprobs] | None = None  # on the choice's first delta, if asked for
