"""Batch: what the scheduler chose for one step."""

from dataclasses import dataclass

from engine.kv_cache.block import BlockCopy
from engine.outputs import TokenLogprobs
from engine.request import Request
from engine.sampled_row import SampledRow, rows_with_drafts
from engine.speculation import SpeculationOutput


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `num_tokens` uncomputed tokens of one request; drafts are the last of them."""

    request: Request
    num_tokens: int
    draft_token_ids: tuple[int, ...] = ()  # follow the last known token

    @property
    def num_scored(self) -> int:
        """Leading tokens of the chunk whose logits give the logprob of a later prompt token."""
        if not self.request.wants_prompt_logprobs:
            return 0
        return min(self.num_tokens, self.request.num_prompt_tokens - 1 - self.request.num_computed_tokens)

    @property
    def reaches_end(self) -> bool:
        """True when the chunk computes the last known token, whose logits give the next one."""
        num_known = self.num_tokens - len(self.draft_token_ids)
        return self.request.num_computed_tokens + num_known == self.request.num_tokens

    @property
    def is_sampled(self) -> bool:
        """True when the step chooses tokens for the request: one, and one after each draft."""
        return self.reaches_end and self.request.wants_token


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes; at most one chunk per request."""

    chunks: tuple[ScheduledChunk, ...]
    block_copies: tuple[BlockCopy, ...] = ()  # to be made first, in order

    @property
    def num_tokens(self) -> int:
        """Tokens that run in the step, drafts included."""
        return sum([chunk.num_tokens for chunk in self.chunks])

    @property
    def num_draft_tokens(self) -> int:
        """Drafts among them."""
        return sum([len(chunk.draft_token_ids) for chunk in self.chunks])

    @property
    def num_scored(self) -> int:
        """Tokens that are scored, over all chunks."""
        return sum([chunk.num_scored for chunk in self.chunks])

    @property
    def sampled_rows(self) -> list[SampledRow]:
        """The places whose token this step chooses, in batch order: 1 + number of drafts for a request."""
        rows: list[SampledRow] = []
        for chunk in self.chunks:
            if chunk.is_sampled:
                if chunk.draft_token_ids:
                    rows += rows_with_drafts(chunk.request, chunk.draft_token_ids)
                else:
                    rows.append(chunk.request)
        return rows


@dataclass(slots=True)
class StepOutput:
    """What a step brought for a request, which may have finished with it."""

    request: Request
    token_ids: tuple[int, ...] = ()  # none for a request that only scores its prompt
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per token, if asked for
    num_draft_tokens: int = 0  # that were verified
    num_accepted_tokens: int = 0  # of them; the first so many of token_ids
    speculation: SpeculationOutput | None = None  # filled in when the step has been timed
