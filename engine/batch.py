"""Batch: what the scheduler chose for one step."""

from dataclasses import dataclass

from engine.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `num_tokens` uncomputed tokens of one request."""

    request: Request
    num_tokens: int

    @property
    def num_scored(self) -> int:
        """Leading tokens of the chunk whose logits give the logprob of a later prompt token."""
        if not self.request.wants_prompt_logprobs:
            return 0
        return min(self.num_tokens, self.request.num_prompt_tokens - 1 - self.request.num_computed_tokens)

    @property
    def reaches_end(self) -> bool:
        """True when the chunk computes the last known token, whose logits give the next one."""
        return self.request.num_computed_tokens + self.num_tokens == self.request.num_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes; at most one chunk per request."""

    chunks: tuple[ScheduledChunk, ...]

    @property
    def sampled_requests(self) -> list[Request]:
        """The requests that get a token from this step, in batch order."""
        return [c.request for c in self.chunks if c.reaches_end and c.request.wants_token]
