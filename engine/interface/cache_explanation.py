"""CacheExplanation: how much of a prompt the prefix cache has, and why it ends there."""

from dataclasses import dataclass
from enum import Enum


class CacheEnd(str, Enum):
    """Why nothing behind a position came from the cache. Other tenants' prefixes are never a reason."""

    END_OF_PROMPT = "end_of_prompt"  # all but the last token is cached; that one is always computed
    DIFFERENT_TOKEN = "different_token"  # noqa: S105 - what followed the prefix last has another token there
    EVICTED = "evicted"  # the block that holds the position was cached and has made room since
    NEVER_SEEN = "never_seen"  # nothing is known to have followed the prefix
    DISABLED = "disabled"  # this engine caches no prefixes
    NOT_USED = "not_used"  # the whole prompt is scored or averaged, so all of it is computed


@dataclass(frozen=True, kw_only=True)
class CacheExplanation:
    """What the cache had of one prompt: its first num_cached_tokens, and why not the next."""

    num_prompt_tokens: int
    num_cached_tokens: int
    block_size: int
    end: CacheEnd
    cached_token_id: int | None = None  # at position num_cached_tokens, with DIFFERENT_TOKEN only
    prompt_token_id: int | None = None
