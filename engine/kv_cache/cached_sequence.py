"""What the KV cache knows of a request, and whom it tells what becomes of blocks."""

from collections.abc import Sequence
from typing import Protocol

from engine.kv_cache.block import Block


class CachedSequence(Protocol):
    """Tokens whose keys and values lie in blocks; engine/core/request.py says what the fields mean."""

    request_id: int
    root_hash: bytes
    num_prompt_tokens: int
    token_ids: list[int]
    num_computed_tokens: int
    num_committed_tokens: int
    num_in_flight: int
    block_table: list[Block]
    block_ids: tuple[int, ...]
    block_hashes: list[bytes]
    num_cached_full_blocks: int

    @property
    def num_tokens(self) -> int: ...  # noqa: D102

    @property
    def wants_whole_prompt(self) -> bool: ...  # noqa: D102


class BlockListener(Protocol):
    """Keeps something of its own in the same blocks, as a draft model does."""

    def blocks_reused(self, block_ids: Sequence[int]) -> None:
        """Forget what these blocks held: they are given to another sequence."""

    def sequence_released(self, sequence: CachedSequence) -> None:
        """Learn that a sequence gives all of its blocks back; it still has them."""
