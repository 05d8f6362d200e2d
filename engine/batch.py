"""Batch: what the scheduler chose for one step."""

from dataclasses import dataclass

from engine.request import Request


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `num_tokens` uncomputed tokens of one request."""

    request: Request
    num_tokens: int

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
        return [chunk.request for chunk in self.chunks if chunk.reaches_end]
