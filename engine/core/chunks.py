"""Chunks: from a claim to what the step computes for a request, by value."""

from engine.core.pooled_sum import PooledSum
from engine.core.request import Request
from engine.core.rows import rows_of
from engine.core.schedule import Claim
from engine.interface.batch import PENDING_TOKEN, ScheduledChunk, ScoredTokens
from engine.interface.sampled_row import SampledRow


def chunk_of(claim: Claim) -> ScheduledChunk:
    """Write down what the step computes for a request: nobody asks the request again."""
    request, drafts = claim.request, claim.draft_token_ids
    first, end = request.num_computed_tokens, request.num_computed_tokens + claim.num_tokens
    num_tokens = len(request.token_ids) + request.num_in_flight
    if request.decodes_plainly and request.num_prompt_tokens <= first == num_tokens - 1:
        return _decoded_chunk(request, first)
    token_ids = tuple(request.token_ids[first:end])
    if len(token_ids) < end - first:  # the last one is in flight
        token_ids = (*token_ids, PENDING_TOKEN)
    reaches_end, wants_token = end == num_tokens, num_tokens < request.max_total_tokens
    scored = None
    if request.params.prompt_logprobs is not None:
        scored = _scored_tokens(request, first, end)
    return ScheduledChunk(
        request.request_id,
        first,
        token_ids + drafts if drafts else token_ids,
        request.block_ids,
        rows_of(request, drafts) if reaches_end and wants_token else (),
        len(drafts),
        scored,
        None if request.pooled_sum is None else _pooled_from(request.pooled_sum, first, end),
        reaches_end and not wants_token,
    )


def _decoded_chunk(request: Request, position: int) -> ScheduledChunk:
    """Write down, in half the time, what most chunks are: the token chosen last, and the next to choose."""
    token_ids = request.token_ids
    return ScheduledChunk(
        request.request_id,
        position,
        (token_ids[position] if position < len(token_ids) else PENDING_TOKEN,),
        request.block_ids,
        (SampledRow(request.params, request.seed, request.choice, position + 1),),
    )


def _scored_tokens(request: Request, first: int, end: int) -> ScoredTokens | None:
    """Return the prompt tokens whose logprobs a chunk brings: after a preemption some are known."""
    start = max(first, len(request.prompt_logprobs))
    targets = request.prompt_token_ids[start + 1 : end + 1]
    if not targets:
        return None
    return ScoredTokens(start - first, targets, request.params.prompt_logprobs or 0)


def _pooled_from(pooled_sum: PooledSum, first: int, end: int) -> int | None:
    """Return the first token of a chunk that counts: after a preemption some are in the sum already."""
    start = max(first, pooled_sum.next_position)
    return start - first if start < end else None


def faults_of(chunk: ScheduledChunk, first_token: int, faults: frozenset[int]) -> frozenset[int]:
    """Return the faults among the tokens of a chunk that begins at `first_token`, counted from there."""
    mine = range(first_token, first_token + len(chunk.token_ids))
    return frozenset(token - first_token for token in faults if token in mine)
