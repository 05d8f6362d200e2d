"""What the prefix cache holds of a prompt, and where and why that ends."""

from __future__ import annotations

from dataclasses import dataclass

from draftline_client.types._record import Delivered, Record


@dataclass(frozen=True, kw_only=True)
class PromptToken(Record):
    """One token of a prompt."""

    token_id: int  # in the model's vocabulary
    text: str  # that it stands for


@dataclass(frozen=True, kw_only=True)
class CacheEnd(Record):
    """Where the cached part of a prompt ends, and why.

    `end_of_prompt`: all but the last token, which is always computed, was cached. `different_token`: this
    prefix went on with another token before. `evicted`: what followed was cached and has made room.
    `never_seen`: nothing is known to have followed. Servers may have further reasons.
    """

    reason: str  # end_of_prompt, different_token, evicted, never_seen, ...
    position: int  # in tokens of the prompt, counted from 0
    cached: PromptToken | None = None  # with different_token: the one that the cache has at `position`
    prompt: PromptToken | None = None  # with different_token: the one that the prompt has there


@dataclass(frozen=True, kw_only=True)
class CacheExplanation(Record):
    """How much of one prompt the prefix cache has, and what ends it."""

    prompt_tokens: int  # of the prompt
    cached_tokens: int  # of them, from its beginning on
    block_size: int  # tokens that are cached together
    end: CacheEnd  # of the cached part


@dataclass(frozen=True, kw_only=True)
class CacheLookup(CacheExplanation, Delivered):
    """The reply of `cache.lookup`: what a request with this prompt would find now."""

    model: str  # whose cache it is
