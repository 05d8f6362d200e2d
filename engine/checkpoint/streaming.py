"""Stored tensors to a GPU, a piece at a time: no copy of a whole tensor is made in host memory.

What a file holds as plain numbers goes over as it is stored, and is checked, converted and transposed there;
blocks are dequantised here, piece by piece.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.checkpoint.checkpoint import StoredTensor
from engine.checkpoint.finite import not_finite_error
from engine.checkpoint.stored_tensor import GGUFTensor, TorchTensor, describe
from engine.interface.errors import CheckpointError

PIECE_BYTES = 32 * 2**20
"""In float32: what host memory and the device need beside the tensor itself, a few times over there."""


def stream_tensor(name: str, stored: StoredTensor, destination: Tensor) -> None:
    """Copy a stored tensor into one of its shape, on any device and in any floating dtype.

    Raises CheckpointError where the bytes cannot be read, or hold NaN, infinity or what float16 cannot hold;
    waits for the device once.
    """
    is_finite = torch.ones(2, dtype=torch.bool, device=destination.device)  # as stored, as converted
    start = 0
    for piece in _pieces(stored):
        rows = destination[start : start + len(piece)]
        here = piece.to(destination.device)
        rows.copy_(here)
        is_finite[0] &= torch.isfinite(here).all()
        is_finite[1] &= torch.isfinite(rows).all()
        start += len(piece)
    was_finite, stays_finite = is_finite.tolist()
    if not was_finite:
        raise not_finite_error(name, stored)
    if not stays_finite:
        raise too_large_error(name, stored)


def too_large_error(name: str, stored: StoredTensor) -> CheckpointError:
    """Return the error for values that are finite as stored and not in float16."""
    return CheckpointError(
        f"{describe(name, stored)} has values too large for float16; use --dtype bfloat16 or float32"
    )


def _pieces(stored: StoredTensor) -> Iterator[Tensor]:
    """Yield consecutive rows in host memory, in the nearest dtype that torch has to the stored one."""
    if not isinstance(stored, GGUFTensor | TorchTensor) or len(stored.shape) not in (1, 2):
        yield stored.dequantize()
        return
    num_rows = stored.shape[0]
    row_bytes = 4 * (stored.shape[1] if len(stored.shape) == 2 else 1)
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield stored.read_rows(start, min(start + step, num_rows))
