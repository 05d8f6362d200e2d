"""Slots for drafts: what is left of the budget and of the free blocks, until somebody needs them."""

from collections.abc import Sequence

from engine.core.request import Request
from engine.core.schedule import Claim
from engine.kv_cache.kv_cache_manager import KVCacheManager


def schedule_drafts(claims: Sequence[Claim], budget: int, kv_cache_manager: KVCacheManager) -> int:
    """Let drafts ride along as far as budget and free blocks go; return what is left of the budget."""
    for claim in claims:
        request = claim.request
        if not (request.draft_token_ids or request.num_model_drafts):
            continue
        num_drafts = min(budget, len(request.draft_token_ids) or request.num_model_drafts)
        if num_drafts and kv_cache_manager.allocate_slots(request, claim.num_tokens + num_drafts):
            claim.draft_token_ids = request.draft_token_ids[:num_drafts]
            claim.num_model_drafts = num_drafts - len(claim.draft_token_ids)
            budget -= num_drafts
    return budget


def drop_drafts(requests: Sequence[Request], kv_cache_manager: KVCacheManager) -> bool:
    """Forget all drafts and give their blocks back; False if there were none to give."""
    released = False
    for request in requests:
        request.forget_drafts()
        released |= kv_cache_manager.release_draft_slots(request)
    return released
