"""BlockPool: which blocks are free, which are cached, in which order they are evicted."""

from collections import OrderedDict
from collections.abc import Iterable

from engine.kv_cache.block import Block


class BlockPool:
    """A fixed number of blocks with a free queue in eviction order; every operation is O(1) per block.

    A freed block that has a hash stays findable until it is allocated again: the free queue is also the
    LRU list of the prefix cache. Blocks without a hash hold nothing worth keeping and are reused first.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._free = OrderedDict((block.block_id, block) for block in self.blocks)
        self._cached: dict[bytes, Block] = {}

    @property
    def num_blocks(self) -> int:
        """Number of blocks, free or not."""
        return len(self.blocks)

    @property
    def num_free(self) -> int:
        """Number of blocks that allocate() could return, cached ones included."""
        return len(self._free)

    def find(self, block_hash: bytes) -> Block | None:
        """Return the block published under this hash, free or in use."""
        return self._cached.get(block_hash)

    def is_free(self, block: Block) -> bool:
        """Tell whether no request holds the block."""
        return block.ref_count == 0

    def allocate(self) -> Block:
        """Take the block next in eviction order, forgetting what it cached. Precondition: num_free > 0."""
        _, block = self._free.popitem(last=False)
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None
        block.has_draft_kv = False
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
                if block.block_hash is None:
                    self._free.move_to_end(block.block_id, last=False)

    def publish(self, block: Block, block_hash: bytes) -> None:
        """Make a full block findable; the first block published under a hash keeps it."""
        if block.block_hash is None and block_hash not in self._cached:
            block.block_hash = block_hash
            self._cached[block_hash] = block

    def check_invariants(self) -> None:
        """Re-derive every redundant fact; raises AssertionError. For tests and self-tests."""
        free_ids = {block.block_id for block in self.blocks if block.ref_count == 0}
        assert free_ids == set(self._free), "free queue and reference counts disagree"
        assert all(block.ref_count >= 0 for block in self.blocks), "negative reference count"
        hashed = {block.block_hash: block for block in self.blocks if block.block_hash is not None}
        assert hashed == self._cached, "published blocks and their hashes disagree"
