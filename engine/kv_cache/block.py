"""Block: the unit of KV memory, `block_size` consecutive positions of one sequence."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Block:
    """One block of the pool; its id is also its row in every layer's KV storage."""

    block_id: int
    ref_count: int = 0  # requests that hold it; at 0 it is in the free queue
    block_hash: bytes | None = None  # set while the prefix cache may hand it out
    parent_hash: bytes | None = None  # of the prefix that token_ids follow; set while others may copy them
    token_ids: tuple[int, ...] = ()  # that its first positions hold
