"""Exact block ids and exact eviction order; no model."""

import random

import pytest

from engine.kv_cache.block_pool import BlockPool


def ids(blocks):
    return [block.block_id for block in blocks]


def test_fresh_blocks_come_in_order():
    pool = BlockPool(4)
    assert ids(pool.allocate() for _ in range(4)) == [0, 1, 2, 3]
    assert pool.num_free == 0


def test_unhashed_blocks_are_reused_before_cached_ones():
    pool = BlockPool(4)
    blocks = [pool.allocate() for _ in range(4)]
    pool.cache_full_block(blocks[0], b"a")
    pool.cache_full_block(blocks[1], b"b")
    pool.free(reversed(blocks))
    # 3 and 2 hold nothing; of the cached ones the tail (1) goes before the head (0)
    assert ids(pool.allocate() for _ in range(4)) == [2, 3, 1, 0]
    assert pool.find(b"a") is None
    assert pool.find(b"b") is None


def test_a_touched_block_leaves_the_free_queue_and_comes_back_last():
    pool = BlockPool(3)
    a, b, c = (pool.allocate() for _ in range(3))
    for block, name in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.cache_full_block(block, name)
    pool.free([a, b, c])
    found = pool.find(b"a")
    assert found is a
    pool.touch(a)
    assert pool.num_free == 2
    pool.free([a])
    assert ids(pool.allocate() for _ in range(3)) == [1, 2, 0]


def test_the_first_block_published_under_a_hash_keeps_it():
    pool = BlockPool(2)
    a, b = pool.allocate(), pool.allocate()
    pool.cache_full_block(a, b"x")
    pool.cache_full_block(b, b"x")
    assert pool.find(b"x") is a
    assert b.block_hash is None
    pool.check_invariants()


def test_a_shared_block_is_free_only_after_its_last_holder():
    pool = BlockPool(1)
    block = pool.allocate()
    pool.cache_full_block(block, b"x")
    pool.touch(block)
    pool.free([block])
    assert not pool.is_free(block)
    pool.free([block])
    assert pool.is_free(block)


def test_a_continuation_is_found_until_its_block_is_used_again():
    pool = BlockPool(2)
    block = pool.allocate()
    pool.register_partial_block(block, b"p", [1, 2])
    assert pool.find_partial_block(b"p") is block
    pool.free([block])
    assert ids([pool.allocate()]) == [1]  # the block that nobody can find goes first
    assert pool.find_partial_block(b"p") is block
    assert ids([pool.allocate()]) == [0]
    assert pool.find_partial_block(b"p") is None
    assert (block.parent_hash, block.token_ids) == (None, ())


def test_the_latest_continuation_is_kept_unless_the_earlier_one_says_more():
    pool = BlockPool(4)
    short, longer, other, _ = (pool.allocate() for _ in range(4))
    pool.register_partial_block(short, b"p", [1, 2])
    pool.register_partial_block(longer, b"p", [1, 2, 3])
    assert pool.find_partial_block(b"p") is longer
    pool.register_partial_block(short, b"p", [1, 2])
    assert pool.find_partial_block(b"p") is longer
    pool.free([longer])
    pool.register_partial_block(other, b"p", [1, 9])
    assert pool.find_partial_block(b"p") is other
    pool.check_invariants()
    assert pool.allocate() is longer


def test_a_block_that_was_copied_from_is_evicted_later():
    pool = BlockPool(3)
    a, b, held = (pool.allocate() for _ in range(3))
    pool.register_partial_block(a, b"a", [1])
    pool.register_partial_block(b, b"b", [1])
    pool.register_partial_block(held, b"c", [1])
    pool.free([a, b])
    pool.refresh(a)
    pool.refresh(held)
    assert ids(pool.allocate() for _ in range(2)) == [1, 0]


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        BlockPool(0)


def test_invariants_hold_after_every_random_operation():
    rng = random.Random(7)
    pool, held, hashes = BlockPool(9), [], 0
    for _ in range(5_000):
        action = rng.random()
        if action < 0.4 and pool.num_free:
            held.append(pool.allocate())
        elif action < 0.6 and held:
            hashes += 1
            pool.cache_full_block(rng.choice(held), b"%d" % (hashes % 12))
            block = rng.choice(held)
            if block.parent_hash is None:
                pool.register_partial_block(
                    block, b"%d" % rng.randrange(12), rng.choices(range(3), k=rng.randrange(1, 4))
                )
        elif action < 0.7 and (block := pool.find(b"%d" % rng.randrange(12))):
            pool.touch(block)
            held.append(block)
        elif held:
            pool.free([held.pop(rng.randrange(len(held)))])
        pool.check_invariants()
    pool.free(held)
    assert pool.num_free == 9
