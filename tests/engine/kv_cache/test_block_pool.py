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
    pool.publish(blocks[0], b"a")
    pool.publish(blocks[1], b"b")
    pool.free(reversed(blocks))
    # 3 and 2 hold nothing; of the cached ones the tail (1) goes before the head (0)
    assert ids(pool.allocate() for _ in range(4)) == [2, 3, 1, 0]
    assert pool.find(b"a") is None
    assert pool.find(b"b") is None


def test_a_touched_block_leaves_the_free_queue_and_comes_back_last():
    pool = BlockPool(3)
    a, b, c = (pool.allocate() for _ in range(3))
    for block, name in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.publish(block, name)
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
    pool.publish(a, b"x")
    pool.publish(b, b"x")
    assert pool.find(b"x") is a
    assert b.block_hash is None
    pool.check_invariants()


def test_a_shared_block_is_free_only_after_its_last_holder():
    pool = BlockPool(1)
    block = pool.allocate()
    pool.publish(block, b"x")
    pool.touch(block)
    pool.free([block])
    assert not pool.is_free(block)
    pool.free([block])
    assert pool.is_free(block)


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
            pool.publish(rng.choice(held), b"%d" % (hashes % 12))
        elif action < 0.7 and (block := pool.find(b"%d" % rng.randrange(12))):
            pool.touch(block)
            held.append(block)
        elif held:
            pool.free([held.pop(rng.randrange(len(held)))])
        pool.check_invariants()
    pool.free(held)
    assert pool.num_free == 9
