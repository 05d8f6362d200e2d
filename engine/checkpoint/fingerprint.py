"""Fingerprint: sixteen bytes that tell one set of weights from another, in milliseconds."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.checkpoint.checkpoint import StoredTensor
from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import CheckpointError

_NUM_WINDOWS = 1024
_WINDOW_BYTES = 1024
"""A file of up to a megabyte is hashed whole, a larger one at 1,024 evenly spaced places."""


def compute_fingerprint(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], weight_files: Sequence[Path]
) -> bytes:
    """Hash the configuration, each tensor's name, shape and format, and a sample of the weight files.

    Equal files give equal fingerprints wherever they lie. It keys the prefix cache and is no proof of
    integrity: two files of one size that differ only between the sampled places have the same one.
    Raises CheckpointError when a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"draftline ckpt 1")
    digest.update(repr(config).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].shape} {tensors[name].format}".encode())
    num_windows = max(16, _NUM_WINDOWS // len(weight_files))
    for path in weight_files:
        digest.update(_sample(path, num_windows))
    return digest.digest()


def _sample(path: Path, num_windows: int) -> bytes:
    """Return a file's size and all of it, or that many evenly spaced pieces."""
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            if size <= num_windows * _WINDOW_BYTES:
                return b"%d\n" % size + file.read()
            pieces = [b"%d\n" % size]
            for window in range(num_windows):
                file.seek(window * (size - _WINDOW_BYTES) // (num_windows - 1))
                pieces.append(file.read(_WINDOW_BYTES))
            return b"".join(pieces)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
