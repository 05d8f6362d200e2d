"""EvictedBlocks: a bounded memory of what was cached and has made room."""

from collections import OrderedDict
from collections.abc import Sequence

from engine.kv_cache.block import Block

_MAX_REMEMBERED = 1 << 14


class EvictedBlocks:
    """Remembers the blocks that a pool evicted last, as many as it has: what one turn of it has displaced.

    That is 0.8 KB for a block, of which the keys and values take 360 KB with the default model, and never
    more than 13 MB. Every operation is O(1). Names are hashes, so that tenants stay apart here as well.
    """

    def __init__(self, num_blocks: int) -> None:
        self._max_remembered = min(num_blocks, _MAX_REMEMBERED)
        self._hashes: OrderedDict[bytes, None] = OrderedDict()  # of full blocks, evicted longest ago first
        self._continuations: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()  # by the prefix before them

    def __len__(self) -> int:
        return max(len(self._hashes), len(self._continuations))

    def add(self, block: Block) -> None:
        """Remember a block that is about to lose what it holds."""
        if block.block_hash is not None:
            self._hashes[block.block_hash] = None
            if len(self._hashes) > self._max_remembered:
                self._hashes.popitem(last=False)
        if block.parent_hash is not None:
            self._continuations[block.parent_hash] = block.token_ids
            self._continuations.move_to_end(block.parent_hash)
            if len(self._continuations) > self._max_remembered:
                self._continuations.popitem(last=False)

    def forget_full_block(self, block_hash: bytes) -> None:
        """Forget a block that is cached again."""
        self._hashes.pop(block_hash, None)

    def forget_partial_block(self, parent_hash: bytes, token_ids: Sequence[int]) -> None:
        """Forget a continuation of a prefix that is there again with all its tokens."""
        evicted = self._continuations.get(parent_hash)
        if evicted is not None and token_ids[: len(evicted)] == evicted:
            del self._continuations[parent_hash]

    def had_full_block(self, block_hash: bytes) -> bool:
        """Tell whether a full block of this hash was evicted and is not back."""
        return block_hash in self._hashes

    def had_tokens(self, parent_hash: bytes, token_ids: Sequence[int]) -> bool:
        """Tell whether a block evicted behind the prefix of this hash began with these tokens."""
        evicted = self._continuations.get(parent_hash)
        return evicted is not None and evicted[: len(token_ids)] == tuple(token_ids)
