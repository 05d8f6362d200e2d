"""TextDelta: what one step, or a few, added to one choice."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.outputs import FinishReason, TokenLogprobs
from server.api.speculation import TokenProvenance
from server.api.token_scores import ScoredToken


@dataclass(slots=True, kw_only=True)
class TextDelta:
    """What was added to one choice; `finish_reason` is set once, on its last delta."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: Sequence[ScoredToken] = ()  # of the tokens whose text is complete now
    provenance: Sequence[TokenProvenance] = ()  # of token_ids, if asked for
    prompt_logprobs: Sequence[TokenLogprobs] | None = None  # on the choice's first delta, if asked for

    def extend(self, later: "TextDelta") -> None:
        """Take in the choice's next delta, so that both go out as one chunk."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.finish_reason = later.finish_reason
        self.logprobs = (*self.logprobs, *later.logprobs)
        self.provenance = (*self.provenance, *later.provenance)
