"""Removing tokens from a row of logits by a bitmask: a few microseconds in the kernels, fifty in torch."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.cpu.library import load_library

_NEVER = float("-inf")


def forbid(logits: Tensor, allowed: npt.NDArray[np.uint32]) -> None:
    """Set to -inf, in place, each logit of float32 [num_tokens] whose bit is 0 in little-endian words."""
    library = load_library()
    if library is None or logits.device.type != "cpu" or not logits.is_contiguous():
        forbid_in_torch(logits, allowed)
    else:
        library.draftline_mask(logits.data_ptr(), allowed.ctypes.data, len(logits))


def forbid_in_torch(logits: Tensor, allowed: npt.NDArray[np.uint32]) -> None:
    """Do the same in plain torch, on any device."""
    bits = np.unpackbits(np.invert(allowed).view(np.uint8), count=len(logits), bitorder="little")
    logits.masked_fill_(torch.from_numpy(bits.view(np.bool_)).to(logits.device), _NEVER)
