"""Why the cached part of a prompt ends where it does, found out only for those who ask."""

from engine.interface.cache_explanation import CacheEnd, CacheExplanation
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.cached_sequence import CachedSequence


def explain_end(
    sequence: CachedSequence, num_cached_tokens: int, *, pool: BlockPool, block_size: int
) -> CacheExplanation:
    """Return why the cache has no more of a prompt than its first tokens.

    The sequence has its block hashes and no token of an answer. Changes nothing: no order, no reference.
    """
    reason, cached_token_id = _find_reason(sequence, num_cached_tokens, pool, block_size)
    is_different = cached_token_id is not None
    return CacheExplanation(
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=num_cached_tokens,
        block_size=block_size,
        end=reason,
        cached_token_id=cached_token_id,
        prompt_token_id=sequence.token_ids[num_cached_tokens] if is_different else None,
    )


def explain_unused(sequence: CachedSequence, reason: CacheEnd, *, block_size: int) -> CacheExplanation:
    """Return the explanation for a prompt that takes nothing from the cache, whatever that has."""
    return CacheExplanation(
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=0,
        block_size=block_size,
        end=reason,
    )


def _find_reason(
    sequence: CachedSequence, position: int, pool: BlockPool, block_size: int
) -> tuple[CacheEnd, int | None]:
    """Return why the cache ends before a position, and the token that it has there instead."""
    if position >= sequence.num_prompt_tokens - 1:
        return CacheEnd.END_OF_PROMPT, None
    number, offset = divmod(position, block_size)
    parent = sequence.block_hashes[number - 1] if number else sequence.root_hash
    tokens = tuple(sequence.token_ids[number * block_size : position + 1])
    if pool.evicted.had_tokens(parent, tokens):
        return CacheEnd.EVICTED, None
    if number < len(sequence.block_hashes) and pool.evicted.had_full_block(sequence.block_hashes[number]):
        return CacheEnd.EVICTED, None
    continuation = pool.find_partial_block(parent)
    if continuation is None or len(continuation.token_ids) <= offset:
        return CacheEnd.NEVER_SEEN, None
    if continuation.token_ids[offset] == tokens[offset]:
        # The block before was copied from one that only looks like the one evicted: nothing is chained to it.
        return CacheEnd.EVICTED, None
    return CacheEnd.DIFFERENT_TOKEN, continuation.token_ids[offset]
