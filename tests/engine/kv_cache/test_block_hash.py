from engine.kv_cache.block_hash import hash_block, hash_root


def root(**changes):
    parts = {"secret": b"s" * 32, "fingerprint": b"model", "kv_dtype": "bf16", "cache_salt": b"tenant"}
    return hash_root(**(parts | changes))


def test_everything_that_decides_the_content_changes_the_hash():
    roots = {
        root(),
        root(secret=b"t" * 32),
        root(fingerprint=b"other"),
        root(kv_dtype="int8"),
        root(cache_salt=b"x"),
    }
    assert len(roots) == 5


def test_parts_do_not_run_into_each_other():
    assert root(fingerprint=b"ab", cache_salt=b"c") != root(fingerprint=b"a", cache_salt=b"bc")


def test_a_block_hash_depends_on_the_whole_prefix():
    first = hash_block(root(), [1, 2])
    assert len(first) == 16
    assert hash_block(first, [3, 4]) != hash_block(root(), [3, 4])
    assert hash_block(first, [3, 4]) != hash_block(first, [4, 3])
    assert hash_block(first, [3, 4]) == hash_block(hash_block(root(), [1, 2]), [3, 4])
