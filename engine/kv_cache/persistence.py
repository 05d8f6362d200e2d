"""Persistence: cached blocks go to files when there is time, and come back when a request wants them."""

import time
from collections import deque
from typing import Protocol

from engine.kv_cache.block import Block

_MAX_UNSAVED = 1 << 16  # blocks
_CLOSE_SECONDS = 2.0  # a shutdown waits no longer for a slow disk
_WRITTEN_AT_ONCE, _PAUSE = 16, 0.002  # blocks, and seconds between two tries


class BlockStorage(Protocol):
    """The memory of blocks, in whatever layout."""

    def read_block(self, block_id: int) -> bytes:
        """Return a copy of a block's bytes."""

    def write_block(self, block_id: int, content: bytes) -> None:
        """Give a block the bytes that read_block() returned."""


class StoredBlocks(Protocol):
    """Blocks by hash that outlive the process."""

    def __contains__(self, block_hash: bytes) -> bool: ...

    def is_whole(self, block_hash: bytes) -> bool:
        """Tell whether a block is there and known not to be damaged."""

    def load(self, block_hash: bytes) -> bytes | None:
        """Return a block's bytes, None if they are not there."""

    @property
    def has_room(self) -> bool:
        """False while so much waits to be written that another block must wait."""

    def save(self, block_hash: bytes, body: bytes) -> None:
        """Keep a block."""

    def close(self, timeout: float) -> None:
        """Write what waits, as far as that takes no longer than `timeout` seconds."""


class Persistence:
    """Carries blocks between the storage and the files; belongs to the engine's thread."""

    def __init__(self, storage: BlockStorage, files: StoredBlocks) -> None:
        self._storage = storage
        self._files = files
        # The oldest are the likeliest to be evicted already where files cannot keep up.
        self._unsaved: deque[tuple[Block, bytes]] = deque(maxlen=_MAX_UNSAVED)

    def note(self, block: Block, block_hash: bytes) -> None:
        """Remember that a full block is to be saved."""
        if block.block_hash == block_hash and not self._files.is_whole(block_hash):
            self._unsaved.append((block, block_hash))

    def write_back(self, max_blocks: int) -> bool:
        """Save up to so many blocks that still hold what they held; True if more are left."""
        while max_blocks and self._unsaved and self._files.has_room:
            max_blocks -= 1
            block, block_hash = self._unsaved.popleft()
            if block.block_hash == block_hash and not self._files.is_whole(block_hash):
                self._files.save(block_hash, self._storage.read_block(block.block_id))
        return bool(self._unsaved)

    def has(self, block_hash: bytes) -> bool:
        """Tell whether a block can be restored, unless it turns out to be damaged."""
        return block_hash in self._files

    def restore(self, block: Block, block_hash: bytes) -> bool:
        """Fill a block that nobody uses; False if what should be in it is damaged."""
        content = self._files.load(block_hash)
        if content is None:
            return False
        self._storage.write_block(block.block_id, content)
        return True

    def close(self) -> None:
        """Save what is left, as far as there is time for it, and end."""
        ends = time.monotonic() + _CLOSE_SECONDS
        while self.write_back(_WRITTEN_AT_ONCE) and time.monotonic() < ends:
            time.sleep(_PAUSE)
        self._files.close(max(0.0, ends - time.monotonic()))
