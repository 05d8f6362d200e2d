"""Opens the directory in which cached blocks outlive the process."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.checkpoint.checkpoint import Checkpoint
from engine.interface.info import EngineInfo
from engine.interface.version import installed_version
from engine.kernels import cuda as cuda_kernels
from engine.kernels.cpu.library import library_path
from engine.kv_cache.block_files import BlockFiles
from engine.kv_cache.persistence import BlockStorage, Persistence
from engine.loading.secret_file import read_or_create_secret

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PersistentCache:
    """Blocks that outlive the process, and the secret that their hashes are made with."""

    persistence: Persistence
    secret: bytes


def open_persistent_cache(
    directory: Path, checkpoint: Checkpoint, info: EngineInfo, storage: BlockStorage, *, max_bytes: int
) -> PersistentCache:
    """Return what a directory holds; blocks of other weights, kernels or versions are deleted from it.

    Raises ConfigError where it cannot be used, or another server uses it.
    """
    secret = read_or_create_secret(directory / "secret")
    files = BlockFiles(directory, secret=secret, layout=_layout(checkpoint, info), max_bytes=max_bytes)
    logger.info("kv_cache_dir: %d blocks, %d bytes in %s", len(files), files.num_bytes, directory)
    return PersistentCache(persistence=Persistence(storage, files), secret=secret)


def _layout(checkpoint: Checkpoint, info: EngineInfo) -> bytes:
    """Return everything that decides the bytes of a block, and what computed them."""
    parts = {
        "checkpoint": checkpoint.fingerprint.hex(),
        "version": installed_version(),
        "torch": torch.__version__,
        "kernels": info.kernels,
        "library": _hash_of(_kernel_files(info.kernels)),
        "device": info.device,
        "dtype": info.dtype,
        "kv_cache_dtype": info.kv_cache_dtype,
        "block_size": info.block_size,
        "block_bytes": info.kv_cache_bytes // info.num_kv_blocks,
    }
    return json.dumps(parts, sort_keys=True).encode()


def _kernel_files(kernels: str) -> list[Path]:
    """Return what the kernels are made of."""
    if kernels == "torch":
        return []
    if kernels == "triton":
        return sorted(Path(cuda_kernels.__path__[0]).glob("*.py"))
    path = library_path()
    return [] if path is None else [path]


def _hash_of(paths: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join([path.read_bytes() for path in paths])).hexdigest()
