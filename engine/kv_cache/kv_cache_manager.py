"""KVCacheManager: which blocks each request holds and which of them others may reuse."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.batch import BlockCopy
from engine.interface.cache_explanation import CacheEnd, CacheExplanation
from engine.kv_cache.block import Block
from engine.kv_cache.block_hash import hash_block
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.cache_explanation import explain_end, explain_unused
from engine.kv_cache.cached_sequence import BlockListener, CachedSequence
from engine.kv_cache.persistence import Persistence


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """What the cache holds of a request: whole blocks to share, then tokens of one more block to copy."""

    blocks: tuple[Block, ...] = ()
    tail: Block | None = None
    num_tail_tokens: int = 0


class KVCacheManager:
    """Block tables over one pool, and the prefix cache.

    A request's tokens, with block_size 4 and 11 tokens of which 9 are computed:

        | 0 1 2 3 | 4 5 6 7 | 8 . . . |    block_table
        | cached  | cached  |registered|   only full and computed blocks are cached, to be shared

    A request that goes on differently within a block, or whose block is not full there, copies the block and
    keeps the tokens that both have: a block is registered for that when it is full, when the prompt is
    computed and when the request leaves.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        enable_prefix_caching: bool,
        listener: BlockListener | None = None,
        persistence: Persistence | None = None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._listener = listener
        self.persistence = persistence if enable_prefix_caching else None
        self._in_flight: dict[bytes, int] = {}  # hash of a block being computed -> request_id

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def find_cached_prefix(self, request: CachedSequence) -> CachedPrefix:
        """Return the longest prefix of the request that the cache holds, without taking it.

        The last token is never covered: its logits are wanted, so it is always recomputed. A request that
        scores or averages its whole prompt needs every hidden state and takes nothing.
        """
        if not self.enable_prefix_caching or request.wants_whole_prompt:
            return CachedPrefix()
        self._extend_hashes(request)
        found: list[Block] = []
        for block_hash in request.block_hashes[: (request.num_tokens - 1) // self.block_size]:
            block = self.pool.find(block_hash)
            if block is None:
                break
            found.append(block)
        return CachedPrefix(tuple(found), *self._find_tail(request, len(found)))

    def explain(self, request: CachedSequence, cached: CachedPrefix) -> CacheExplanation:
        """Return why what find_cached_prefix() found of a prompt ends there, before any of it is taken."""
        num_tokens = len(cached.blocks) * self.block_size + cached.num_tail_tokens
        return self._explain(request, num_tokens)

    def look_up(self, request: CachedSequence) -> CacheExplanation:
        """Explain what a request would find if it started now, files included; changes nothing."""
        if not self.enable_prefix_caching or request.wants_whole_prompt:
            return self._explain(request, 0)
        self._extend_hashes(request)
        hashes = request.block_hashes[: (request.num_tokens - 1) // self.block_size]
        num_blocks = sum(1 for _ in itertools.takewhile(self._is_kept, hashes))
        _, num_tail_tokens = self._find_tail(request, num_blocks)
        return self._explain(request, num_blocks * self.block_size + num_tail_tokens)

    def is_restorable(self, request: CachedSequence) -> bool:
        """Tell whether the first block that the cache lacks is in a file, and would fit with all others."""
        if self.persistence is None or request.wants_whole_prompt:
            return False
        self._extend_hashes(request)
        hashes = request.block_hashes[: (request.num_tokens - 1) // self.block_size]
        missing = next((one for one in hashes if self.pool.find(one) is None), None)
        if missing is None or missing in self._in_flight or not self.persistence.has(missing):
            return False
        return self.num_blocks_for(request.num_tokens) <= self.pool.num_free

    def restore_prefix(self, request: CachedSequence, max_blocks: int) -> None:
        """Put up to so many blocks of a waiting request's prefix back into the cache, where is_restorable().

        Call it while no copy is planned: blocks are filled at once.
        """
        held: list[Block] = []  # so that none of them is evicted for the next
        for number, block_hash in enumerate(
            request.block_hashes[: (request.num_tokens - 1) // self.block_size]
        ):
            block = self.pool.find(block_hash)
            if block is not None:
                self.pool.touch(block)
            elif max_blocks and (block := self._restore(block_hash)) is not None:
                max_blocks -= 1
                first = number * self.block_size
                tokens = request.token_ids[first : first + self.block_size]
                self.pool.register_partial_block(block, self._prefix_hash(request, number), tokens)
            else:
                break
            held.append(block)
        self.pool.free(reversed(held))

    def is_prefix_in_flight(self, request: CachedSequence, num_cached_blocks: int) -> bool:
        """Tell whether another request is computing the block that this one would compute first."""
        if request.wants_whole_prompt:
            return False
        hashes = request.block_hashes[: (request.num_tokens - 1) // self.block_size]
        if num_cached_blocks >= len(hashes):
            return False
        owner = self._in_flight.get(hashes[num_cached_blocks])
        return owner is not None and owner != request.request_id

    def can_start(self, request: CachedSequence, cached: CachedPrefix) -> bool:
        """Tell whether all tokens of a waiting request would fit, the cached blocks taken over."""
        num_free = self.pool.num_free - sum(self.pool.is_free(block) for block in cached.blocks)
        return self.num_blocks_for(request.num_tokens) - len(cached.blocks) <= num_free

    def start(self, request: CachedSequence, cached: CachedPrefix) -> BlockCopy | None:
        """Give a waiting request its cached prefix and announce the blocks it will compute.

        Returns what must be copied before any token of the request is computed.
        """
        for block in cached.blocks:
            self.pool.touch(block)
        self._append(request, cached.blocks)
        request.num_computed_tokens = request.num_committed_tokens = len(cached.blocks) * self.block_size
        request.num_cached_full_blocks = len(cached.blocks)
        for block_hash in request.block_hashes[len(cached.blocks) :]:
            self._in_flight.setdefault(block_hash, request.request_id)
        return self._take_tail(request, cached)

    def allocate_slots(self, request: CachedSequence, num_new_tokens: int) -> bool:
        """Extend the block table by `num_new_tokens` positions; False, changing nothing, if full."""
        num_slots = len(request.block_table) * self.block_size
        if request.num_computed_tokens + num_new_tokens <= num_slots:
            return True
        num_missing = self.num_blocks_for(request.num_computed_tokens + num_new_tokens - num_slots)
        if num_missing > self.pool.num_free:
            return False
        self._append(request, self._allocate(num_missing))
        return True

    def append_block(self, request: CachedSequence) -> int:
        """Extend the block table by one block and return its id. Precondition: one is free."""
        block = self.pool.allocate()
        if self._listener is not None:
            self._listener.blocks_reused((block.block_id,))
        request.block_table.append(block)
        request.block_ids += (block.block_id,)
        return block.block_id

    def cache_computed_blocks(self, request: CachedSequence) -> None:
        """Make every full, computed block of the request findable. Call after num_committed_tokens moved."""
        num_full = request.num_committed_tokens // self.block_size
        if self.enable_prefix_caching and num_full != request.num_cached_full_blocks:
            self._extend_hashes(request)
            for number in range(request.num_cached_full_blocks, num_full):
                block_hash = request.block_hashes[number]
                self.pool.cache_full_block(request.block_table[number], block_hash)
                if self.persistence is not None:
                    self.persistence.note(request.block_table[number], block_hash)
                self._register(request, number)
                self._forget_in_flight(block_hash, request)
            request.num_cached_full_blocks = num_full
        if request.num_committed_tokens == request.num_prompt_tokens:
            self._register_tail(request)

    def release_draft_slots(self, request: CachedSequence) -> bool:
        """Give back the blocks that hold drafts only; False if there were none."""
        num_needed = self.num_blocks_for(request.num_tokens)
        surplus = request.block_table[num_needed:]
        self.pool.free(reversed(surplus))
        del request.block_table[num_needed:]
        request.block_ids = request.block_ids[:num_needed]
        return bool(surplus)

    def free(self, request: CachedSequence) -> None:
        """Take every block from the request; the tail is evicted first, it is the least shared."""
        for block_hash in request.block_hashes[request.num_cached_full_blocks :]:
            self._forget_in_flight(block_hash, request)
        self._register_tail(request)
        if self._listener is not None:
            self._listener.sequence_released(request)
        self.pool.free(reversed(request.block_table))
        request.block_table.clear()
        request.block_ids = ()
        request.num_computed_tokens = request.num_committed_tokens = request.num_in_flight = 0
        request.num_cached_full_blocks = 0

    def check_invariants(self, requests: Sequence[CachedSequence]) -> None:
        """Check the pool and that exactly these requests hold its blocks; raises AssertionError."""
        self.pool.check_invariants()
        held = [block for request in requests for block in request.block_table]
        for block in self.pool.blocks:
            assert block.ref_count == held.count(block), f"block {block.block_id}: wrong reference count"
        for request in requests:
            assert request.block_ids == tuple(block.block_id for block in request.block_table)
            num_slots = len(request.block_table) * self.block_size
            assert request.num_committed_tokens <= request.num_computed_tokens <= num_slots
        owners = {request.request_id for request in requests}
        assert set(self._in_flight.values()) <= owners, "a block in flight has no owner"

    def _find_tail(self, request: CachedSequence, num_blocks: int) -> tuple[Block | None, int]:
        """Return the block to copy behind the first ones, and how many of its tokens the request has."""
        tail = self.pool.find_partial_block(self._prefix_hash(request, num_blocks))
        if tail is None:
            return None, 0
        first = num_blocks * self.block_size
        wanted = request.token_ids[first : min(first + self.block_size, request.num_tokens - 1)]
        num_tokens = _num_equal(tail.token_ids, wanted)
        return (tail, num_tokens) if num_tokens else (None, 0)

    def _explain(self, request: CachedSequence, num_tokens: int) -> CacheExplanation:
        if not self.enable_prefix_caching:
            return explain_unused(request, CacheEnd.DISABLED, block_size=self.block_size)
        if request.wants_whole_prompt:
            return explain_unused(request, CacheEnd.NOT_USED, block_size=self.block_size)
        return explain_end(request, num_tokens, pool=self.pool, block_size=self.block_size)

    def _is_kept(self, block_hash: bytes) -> bool:
        """Tell whether a block is cached, or in a file."""
        is_stored = self.persistence is not None and self.persistence.has(block_hash)
        return is_stored or self.pool.find(block_hash) is not None

    def _restore(self, block_hash: bytes) -> Block | None:
        """Fill a free block from its file and take it."""
        if self.persistence is None or not self.persistence.has(block_hash) or not self.pool.num_free:
            return None
        [block] = self._allocate(1)
        if not self.persistence.restore(block, block_hash):
            self.pool.free([block])
            return None
        self.pool.cache_full_block(block, block_hash)
        return block

    def _take_tail(self, request: CachedSequence, cached: CachedPrefix) -> BlockCopy | None:
        """Give the request a block of its own that holds the tail."""
        if cached.tail is None:
            return None
        self.pool.refresh(cached.tail)
        [own] = self._allocate(1)  # the tail itself where nothing else is free: it is there already then
        self._append(request, [own])
        request.num_computed_tokens += cached.num_tail_tokens
        request.num_committed_tokens = request.num_computed_tokens
        return None if own is cached.tail else BlockCopy(cached.tail.block_id, own.block_id)

    def _register(self, request: CachedSequence, number: int) -> None:
        """Let others copy what is computed of a block of the request."""
        first = number * self.block_size
        token_ids = request.token_ids[first : min(first + self.block_size, request.num_committed_tokens)]
        self.pool.register_partial_block(
            request.block_table[number], self._prefix_hash(request, number), token_ids
        )

    def _register_tail(self, request: CachedSequence) -> None:
        if self.enable_prefix_caching and request.num_committed_tokens % self.block_size:
            self._extend_hashes(request)
            self._register(request, request.num_committed_tokens // self.block_size)

    def _prefix_hash(self, request: CachedSequence, num_blocks: int) -> bytes:
        """Return the hash of the request's first blocks."""
        return request.block_hashes[num_blocks - 1] if num_blocks else request.root_hash

    def _allocate(self, num_blocks: int) -> list[Block]:
        """Take so many blocks next in eviction order."""
        blocks = [self.pool.allocate() for _ in range(num_blocks)]
        if self._listener is not None and blocks:
            self._listener.blocks_reused([block.block_id for block in blocks])
        return blocks

    def _append(self, request: CachedSequence, blocks: Sequence[Block]) -> None:
        request.block_table.extend(blocks)
        request.block_ids += tuple([block.block_id for block in blocks])

    def _forget_in_flight(self, block_hash: bytes, request: CachedSequence) -> None:
        if self._in_flight.get(block_hash) == request.request_id:
            del self._in_flight[block_hash]

    def _extend_hashes(self, request: CachedSequence) -> None:
        size = self.block_size
        while len(request.block_hashes) < len(request.token_ids) // size:
            number = len(request.block_hashes)
            tokens = request.token_ids[number * size : (number + 1) * size]
            request.block_hashes.append(hash_block(self._prefix_hash(request, number), tokens))


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
