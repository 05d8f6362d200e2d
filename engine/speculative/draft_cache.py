"""DraftCache: how far the draft model has computed each request, and in which blocks."""

import itertools
from collections.abc import Sequence

from engine.kv_cache.cached_sequence import CachedSequence


class DraftCache:
    """The draft model's counters beside the target's, for the same blocks.

    Its storage has the target's block ids: one allocation, one prefix hit and one eviction serve both. But it
    counts for itself, for it has not computed all that the target has, and a block remembers whether it holds
    the draft model's keys and values as well.
    """

    def __init__(self, *, block_size: int) -> None:
        self._block_size = block_size
        self._num_computed: dict[int, int] = {}  # by request, drafts included that may have been rejected
        self._written: set[int] = set()  # ids of blocks that the draft model has filled with final tokens

    def num_computed_tokens(self, sequence: CachedSequence) -> int:
        """Return how many of a running sequence's tokens the draft model has computed."""
        self.settle(sequence)
        known = self._num_computed.get(sequence.request_id)
        if known is not None:
            return known
        shared = itertools.takewhile(self._written.__contains__, sequence.block_ids)
        return self._block_size * sum(1 for _ in shared)

    def set_computed(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Note how far the draft model is, drafts included."""
        self._num_computed[sequence.request_id] = num_tokens

    def settle(self, sequence: CachedSequence) -> None:
        """Forget what was computed of rejected tokens, and mark the blocks that are filled.

        To be called before the sequence's next draft and before its blocks can be found by others.
        """
        known = self._num_computed.get(sequence.request_id)
        if known is not None:
            num_tokens = min(known, sequence.num_committed_tokens)
            self._num_computed[sequence.request_id] = num_tokens
            self._written.update(sequence.block_ids[: num_tokens // self._block_size])

    def blocks_reused(self, block_ids: Sequence[int]) -> None:
        """Forget what these blocks held: they are given to another sequence."""
        self._written.difference_update(block_ids)

    def sequence_released(self, sequence: CachedSequence) -> None:
        """Learn that a sequence gives all of its blocks back; it still has them."""
        self.settle(sequence)
        self._num_computed.pop(sequence.request_id, None)
