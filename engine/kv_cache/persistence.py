"""Persistence: cached blocks go to files when there is time, and come back when a request wants them."""

from collections import deque
from typing import Protocol

from engine.kv_cache.block import Block


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

    def save(self, block_hash: bytes, body: bytes) -> bool:
        """Keep a block; False if that must wait."""

    def close(self) -> None:
        """Write what waits."""


class Persistence:
    """Carries blocks between the storage and the files; belongs to the engine's thread."""

    def __init__(self, storage: BlockStorage, files: StoredBlocks) -> None:
        self._storage = storage
        self._files = files
        self._unsaved: deque[tuple[Block, bytes]] = deque()

    def note(self, block: Block, block_hash: bytes) -> None:
        """Remember that a full block is to be saved."""
        if block.block_hash == block_hash and not self._files.is_whole(block_hash):
            self._unsaved.append((block, block_hash))

    def write_back(self, max_blocks: int) -> bool:
        """Save up to so many blocks that still hold what they held; True if more are left."""
        for _ in range(min(max_blocks, len(self._unsaved))):
            block, block_hash = self._unsaved[0]
            is_wanted = block.block_hash == block_hash and not self._files.is_whole(block_hash)
            if is_wanted and not self._files.save(block_hash, self._storage.read_block(block.block_id)):
                break
            self._unsaved.popleft()
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
        """Save everything that is left, and end."""
        while self.write_back(1) and self._unsaved:
            pass
        self._files.close()
