"""Names of full blocks: a chained, keyed hash of everything that decides their content."""

import hashlib
from array import array
from collections.abc import Sequence

DIGEST_BYTES = 16


def hash_root(*, secret: bytes, fingerprint: bytes, kv_dtype: str, cache_salt: bytes) -> bytes:
    """Return the parent hash of a sequence's first block.

    `secret` (random per process) keeps outsiders from constructing collisions; `cache_salt` keeps tenants
    apart: two salts never lead to the same chain.
    """
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    for part in (fingerprint, kv_dtype.encode(), cache_salt):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of a block holding `token_ids` whose prefix has the hash `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()
