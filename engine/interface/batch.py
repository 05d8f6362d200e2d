"""Batch: what one step computes, by value, whatever becomes of the requests; and what came of it."""

from typing import NamedTuple

from engine.interface.outputs import TokenLogprobs
from engine.interface.sampled_row import SampledRow

PENDING_TOKEN = -1
"""Stands for a token that a step under way is still choosing: the executor knows it first."""


class BlockCopy(NamedTuple):
    """A whole block, by ids, whose keys and values are copied before a step; copies are made in order."""

    source: int
    target: int


class ScoredTokens(NamedTuple):
    """Prompt tokens whose logprobs a chunk gives, in order."""

    first_row: int  # token of the chunk whose logits score the first of them
    token_ids: tuple[int, ...]
    num_top: int  # likeliest tokens wanted beside each


class ScheduledChunk(NamedTuple):
    """Consecutive tokens of one request that run in a step; drafts are the last of them."""

    request_id: int
    first_position: int
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]  # of the request, from its first position on
    rows: tuple[SampledRow, ...] = ()  # of the last tokens: 1 + number of drafts if the step chooses any
    num_drafts: int = 0
    scored: ScoredTokens | None = None
    pooled_from: int | None = None  # token of the chunk from which on hidden states are added up
    ends_request: bool = False  # it wants no token, and this is the last of its prompt

    @property
    def num_tokens(self) -> int:
        """Tokens that run in the step, drafts included."""
        return len(self.token_ids)

    @property
    def draft_token_ids(self) -> tuple[int, ...]:
        """The drafts."""
        return self.token_ids[len(self.token_ids) - self.num_drafts :]


class Batch(NamedTuple):
    """What one step computes; at most one chunk per request."""

    chunks: tuple[ScheduledChunk, ...]
    block_copies: tuple[BlockCopy, ...] = ()  # to be made first, in order

    @property
    def num_tokens(self) -> int:
        """Tokens that run in the step, drafts included."""
        return sum([len(chunk.token_ids) for chunk in self.chunks])

    @property
    def num_requests(self) -> int:
        """Requests that take part."""
        return len(self.chunks)

    @property
    def num_drafted(self) -> int:
        """Those of them that have drafts."""
        return sum([chunk.num_drafts > 0 for chunk in self.chunks])

    @property
    def num_draft_tokens(self) -> int:
        """Drafts among the tokens."""
        return sum([chunk.num_drafts for chunk in self.chunks])

    @property
    def reads_hidden_states(self) -> bool:
        """True if any prompt token is scored or pooled."""
        return any(chunk.scored is not None or chunk.pooled_from is not None for chunk in self.chunks)

    @property
    def rows(self) -> list[SampledRow]:
        """The places whose token this step chooses, in batch order."""
        return [row for chunk in self.chunks for row in chunk.rows]


class Continuation(NamedTuple):
    """The step after a launch whose chunks, or rows, chose a token each: the same requests go on.

    A row computes the token which that launch chooses for its request and chooses the next one, with the same
    parameters, seed and choice, at the next position. The rows are those of that launch in its order, without
    the ones that `ended`. There is nothing to copy, and no history, draft, score or pooled sum among them;
    the executor knows all the rest.
    """

    num_rows: int
    new_blocks: tuple[tuple[int, int], ...] = ()  # (row, block id) appended to that request's table
    ended: tuple[int, ...] = ()  # rows of the launch before that do not go on, ascending

    @property
    def num_tokens(self) -> int:
        """Tokens that run in the step."""
        return self.num_rows

    @property
    def num_requests(self) -> int:
        """Requests that take part."""
        return self.num_rows

    @property
    def num_drafted(self) -> int:
        """None of them has drafts."""
        return 0

    @property
    def num_draft_tokens(self) -> int:
        """There are none."""
        return 0


class SamplerOutput(NamedTuple):
    """What a step chose, for each sampled row in batch order."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]  # may be empty where the step is a continuation
    faults: frozenset[int] = frozenset()  # tokens of the step whose keys, values or logits are not finite
    prompt_logprobs: tuple[
        tuple[TokenLogprobs, ...], ...
    ] = ()  # of each chunk that is scored, in batch order
    pooled: tuple[bytes, ...] = ()  # sum of hidden states of each chunk that is pooled, in batch order
