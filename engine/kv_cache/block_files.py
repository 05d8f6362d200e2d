"""BlockFiles: blocks of keys and values in a directory, so that a prefix outlives the process.

    DIRECTORY/lock      held while a process uses it
    DIRECTORY/layout    what the bytes of a block mean; another layout discards all blocks
    DIRECTORY/blocks/   a file for each block, named by its hash: magic, checksum, bytes

A file is renamed to its name after its bytes are written, so a process may be killed at any time. What does
not have its checksum is deleted and never used.
"""

import contextlib
import fcntl
import logging
import os
import queue
import re
import threading
import time
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from engine.interface.errors import ConfigError

logger = logging.getLogger(__name__)

_MAGIC = b"DLKV0001"
_CHECKSUM_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{32}(\.part)?")
_MAX_PENDING_BYTES = 64 << 20
_PAUSE_SECONDS = 60.0  # after a write that failed: a full disk does not empty by trying


class BlockFiles:
    """The files of one engine, the longest unused of which are deleted beyond `max_bytes`.

    `secret` and `layout` are part of every checksum. Reading and asking belong to the engine's thread,
    writing to a thread of its own. Raises ConfigError where the directory cannot be used.
    """

    def __init__(self, directory: Path, *, secret: bytes, layout: bytes, max_bytes: int) -> None:
        self._blocks = directory / "blocks"
        self._secret, self._layout, self._max_bytes = secret, layout, max_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # longest unused first
        self._num_bytes = 0
        self._whole: set[bytes] = set()  # written or read by this process
        self._lock = threading.Lock()
        self._pending: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._num_pending_bytes = 0
        self._paused_until = 0.0
        try:
            self._blocks.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = _lock_directory(directory)
            self._discard_other_layouts(directory / "layout")
            self._read_names()
        except OSError as error:
            raise ConfigError(f"kv_cache_dir: {directory}: {error.strerror or error}") from None
        self._writer = threading.Thread(target=self._write_all, name="block-files", daemon=True)
        self._writer.start()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._sizes

    def is_whole(self, block_hash: bytes) -> bool:
        """Tell whether a block is there and known not to be damaged."""
        return block_hash in self._whole

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self._num_bytes

    def load(self, block_hash: bytes) -> bytes | None:
        """Return the bytes of a block; None for one that is not there or not what was written."""
        path = self._path(block_hash)
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        body = content[len(_MAGIC) + _CHECKSUM_BYTES :]
        if content != self._head(block_hash, body) + body:
            logger.warning("kv_cache_dir: %s is damaged or gone, and was forgotten", path)
            self._forget(block_hash)
            return None
        with self._lock, contextlib.suppress(KeyError):  # just deleted for its age
            self._sizes.move_to_end(block_hash)
            self._whole.add(block_hash)
        with contextlib.suppress(OSError):
            os.utime(path)  # the order of use outlives the process, too
        return body

    @property
    def has_room(self) -> bool:
        """False while so much waits to be written that another block must wait."""
        return self._num_pending_bytes < _MAX_PENDING_BYTES

    def save(self, block_hash: bytes, body: bytes) -> None:
        """Write a block some time."""
        with self._lock:
            self._num_pending_bytes += len(body)
        self._pending.put((block_hash, body))

    def close(self, timeout: float = 60.0) -> None:
        """Write what waits, then let other processes use the directory.

        What takes longer than `timeout` seconds is left to the end of this process.
        """
        self._pending.put(None)
        self._writer.join(timeout)
        if not self._writer.is_alive():
            self._lock_file.close()

    def _path(self, block_hash: bytes) -> Path:
        return self._blocks / block_hash.hex()

    def _head(self, block_hash: bytes, body: bytes) -> bytes:
        digest = blake2b(self._layout + block_hash, key=self._secret, digest_size=_CHECKSUM_BYTES)
        digest.update(body)
        return _MAGIC + digest.digest()

    def _forget(self, block_hash: bytes) -> None:
        with self._lock:
            self._num_bytes -= self._sizes.pop(block_hash, 0)
            self._whole.discard(block_hash)
        with contextlib.suppress(OSError):
            self._path(block_hash).unlink()

    def _discard_other_layouts(self, path: Path) -> None:
        digest = blake2b(self._layout, digest_size=16).hexdigest()
        if not path.exists() or path.read_text(errors="replace") != digest:
            for file in self._blocks.iterdir():
                if _NAME.fullmatch(file.name):
                    file.unlink()
            _write(path, digest.encode())

    def _read_names(self) -> None:
        """Find the blocks that are there; whether they are whole is looked at when they are wanted."""
        found = []
        for file in self._blocks.iterdir():
            if file.name.endswith(".part"):
                file.unlink()
            elif _NAME.fullmatch(file.name):
                stat = file.stat()
                found.append((stat.st_mtime_ns, bytes.fromhex(file.name), stat.st_size))
        self._sizes = OrderedDict((block_hash, size) for _, block_hash, size in sorted(found))
        self._num_bytes = sum(self._sizes.values())

    # Below: the writing thread.

    def _write_all(self) -> None:
        while (item := self._pending.get()) is not None:
            block_hash, body = item
            if time.monotonic() >= self._paused_until and block_hash not in self._whole:
                self._write_one(block_hash, body)
            with self._lock:
                self._num_pending_bytes -= len(body)

    def _write_one(self, block_hash: bytes, body: bytes) -> None:
        content = self._head(block_hash, body) + body
        try:
            self._make_room(len(content))
            _write(self._path(block_hash), content)
        except OSError as error:
            logger.warning("kv_cache_dir: no block was written: %s; the next is tried in a minute", error)
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            return
        with self._lock:
            self._num_bytes += len(content) - self._sizes.pop(block_hash, 0)
            self._sizes[block_hash] = len(content)
            self._whole.add(block_hash)

    def _make_room(self, num_bytes: int) -> None:
        while self._sizes and self._num_bytes + num_bytes > self._max_bytes:
            with self._lock:
                oldest, size = self._sizes.popitem(last=False)
                self._num_bytes -= size
                self._whole.discard(oldest)
            self._path(oldest).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, for its owner alone."""
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    part.replace(path)


def _lock_directory(directory: Path) -> BinaryIO:
    file = os.fdopen(os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"kv_cache_dir: {directory} is in use by another server") from None
    return file
