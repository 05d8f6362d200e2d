"""Removing tokens from a row of logits by the bitmask of a grammar."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

_NEVER = float("-inf")

ApplyBitmask: TypeAlias = Callable[[Tensor, bytes], None]
"""apply_token_bitmask, or a faster twin of it (engine/kernels/cpu/token_bitmask.py)."""


def apply_token_bitmask(logits: Tensor, token_bitmask: bytes) -> None:
    """Set to -inf, in place, each logit of float32 [num_tokens] whose bit is 0, the lowest of a byte first.

    The mask is a multiple of 4 bytes long; tokens that it does not reach are removed too.
    """
    removed = np.unpackbits(np.invert(np.frombuffer(token_bitmask, dtype=np.uint8)), bitorder="little")
    num_masked = min(len(logits), len(removed))
    is_removed = torch.from_numpy(removed[:num_masked].view(np.bool_)).to(logits.device)
    logits[:num_masked].masked_fill_(is_removed, _NEVER)
    logits[num_masked:] = _NEVER
