"""BlockPool: which blocks are free, which are cached, in which order they are evicted."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from engine.kv_cache.block import Block
from engine.kv_cache.evicted_blocks import EvictedBlocks


class BlockPool:
    """A fixed number of blocks with a free queue in eviction order; every operation is O(1) per block.

    A freed block that can be found stays so until it is allocated again: the free queue is also the LRU list
    of the prefix cache. Blocks that cannot be found hold nothing worth keeping and are reused first.

    A full block is found under its hash, to be shared. The tokens of a block, full or not, are also found
    under the hash of the prefix before them, to be copied: what came after that prefix the last time.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free = OrderedDict((block.block_id, block) for block in self.blocks)
        self._cached: dict[bytes, Block] = {}
        self._continuations: dict[bytes, Block] = {}  # by the hash of the prefix before them
        self.evicted = EvictedBlocks(num_blocks)

    @property
    def num_blocks(self) -> int:
        """Number of blocks, free or not."""
        return len(self.blocks)

    @property
    def num_free(self) -> int:
        """Number of blocks that allocate() could return, cached ones included."""
        return len(self._free)

    def find(self, block_hash: bytes) -> Block | None:
        """Return the block cached under this hash, free or in use."""
        return self._cached.get(block_hash)

    def find_partial_block(self, parent_hash: bytes) -> Block | None:
        """Return the block whose token_ids came last after the prefix of this hash."""
        return self._continuations.get(parent_hash)

    def is_free(self, block: Block) -> bool:
        """Tell whether no request holds the block."""
        return block.ref_count == 0

    def allocate(self) -> Block:
        """Take the block next in eviction order, forgetting what it cached. Precondition: num_free > 0."""
        _, block = self._free.popitem(last=False)
        self.evicted.add(block)
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None
        if block.parent_hash is not None:
            del self._continuations[block.parent_hash]
            block.parent_hash, block.token_ids = None, ()
        block.ref_count = 1
        return block

    def touch(self, block: Block) -> None:
        """Take one more reference to a cached block, out of the free queue if it was there."""
        if block.ref_count == 0:
            del self._free[block.block_id]
        block.ref_count += 1

    def free(self, blocks: Iterable[Block]) -> None:
        """Give back one reference to each block; the first one given is evicted first."""
        for block in blocks:
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block.block_id] = block
                self._move_forward_if_lost(block)

    def cache_full_block(self, block: Block, block_hash: bytes) -> None:
        """Make a full block findable; the first block cached under a hash keeps it."""
        if block.block_hash is None and block_hash not in self._cached:
            block.block_hash = block_hash
            self._cached[block_hash] = block
            self.evicted.forget_full_block(block_hash)

    def register_partial_block(self, block: Block, parent_hash: bytes, token_ids: Sequence[int]) -> None:
        """Let others copy the block's first tokens, which follow the prefix of this hash.

        One block is kept for a prefix: the latest, unless the one before begins with the same tokens.
        """
        tokens, earlier = tuple(token_ids), self._continuations.get(parent_hash)
        if earlier is not None:
            if earlier.token_ids[: len(tokens)] == tokens:
                return
            earlier.parent_hash, earlier.token_ids = None, ()
            if self.is_free(earlier):
                self._move_forward_if_lost(earlier)
        block.parent_hash, block.token_ids = parent_hash, tokens
        self._continuations[parent_hash] = block
        self.evicted.forget_partial_block(parent_hash, tokens)

    def refresh(self, block: Block) -> None:
        """Put off the eviction of a block that was copied from, if it is free."""
        if self.is_free(block):
            self._free.move_to_end(block.block_id)

    def check_invariants(self) -> None:
        """Re-derive every redundant fact; raises AssertionError. For tests and self-tests."""
        free_ids = {block.block_id for block in self.blocks if block.ref_count == 0}
        assert free_ids == set(self._free), "free queue and reference counts disagree"
        assert all(block.ref_count >= 0 for block in self.blocks), "negative reference count"
        hashed = {block.block_hash: block for block in self.blocks if block.block_hash is not None}
        assert hashed == self._cached, "cached blocks and their hashes disagree"
        offered = {block.parent_hash: block for block in self.blocks if block.parent_hash is not None}
        assert offered == self._continuations, "continuations and their prefixes disagree"
        assert all(bool(block.token_ids) == (block.parent_hash is not None) for block in self.blocks)

    def _move_forward_if_lost(self, block: Block) -> None:
        """Have a free block reused first if nobody can find it."""
        if block.block_hash is None and block.parent_hash is None:
            self._free.move_to_end(block.block_id, last=False)
