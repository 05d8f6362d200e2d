"""What the draft model has computed, beside the target's counters, in the same blocks."""

from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.speculative.draft_cache import DraftCache
from tests.engine.sampling.test_row_processors import request


def started(manager, number, tokens):
    made = request(prompt=tokens)
    made.request_id = number
    manager.start(made, manager.find_cached_prefix(made))
    assert manager.allocate_slots(made, made.num_tokens - made.num_computed_tokens)
    return made


def commit(manager, made, num_tokens):
    made.num_computed_tokens = made.num_committed_tokens = num_tokens
    manager.cache_computed_blocks(made)


def caches(num_blocks=8):
    cache = DraftCache(block_size=4)
    pool = BlockPool(num_blocks)
    return cache, KVCacheManager(pool, block_size=4, enable_prefix_caching=True, listener=cache)


def test_a_prefix_hit_counts_as_far_as_the_draft_model_has_written_it():
    cache, manager = caches()
    first = started(manager, 1, range(14))
    assert cache.num_computed_tokens(first) == 0
    commit(manager, first, 14)
    cache.set_computed(first, 9)  # of the three full blocks it has filled two
    cache.settle(first)
    second = started(manager, 2, [*range(12), 50, 51])
    assert second.num_computed_tokens == 12
    assert cache.num_computed_tokens(second) == 8


def test_what_was_computed_of_rejected_drafts_is_forgotten_and_marks_no_block():
    cache, manager = caches()
    first = started(manager, 1, range(6))
    commit(manager, first, 6)
    cache.set_computed(first, 9)
    assert cache.num_computed_tokens(first) == 6
    manager.free(first)
    again = started(manager, 2, [*range(4), 60])
    assert cache.num_computed_tokens(again) == 4
    assert started(manager, 3, range(4)) is not None


def test_a_block_that_is_reused_holds_nothing_of_the_draft_model():
    cache, manager = caches(num_blocks=2)
    first = started(manager, 1, range(8))
    commit(manager, first, 8)
    cache.set_computed(first, 8)
    manager.free(first)
    other = started(manager, 2, range(50, 58))  # takes both blocks
    assert cache.num_computed_tokens(other) == 0
    assert not cache._written


def test_after_a_preemption_only_blocks_that_are_still_there_count():
    cache, manager = caches()
    first = started(manager, 1, range(10))
    commit(manager, first, 10)
    cache.set_computed(first, 10)
    manager.free(first)
    manager.start(first, manager.find_cached_prefix(first))
    assert first.num_computed_tokens == 9  # all but the last token, the end of it copied
    assert cache.num_computed_tokens(first) == 8
