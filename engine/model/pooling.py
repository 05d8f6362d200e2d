"""Sums of hidden states in fixed point: integers add up to the same in any order and any cut into chunks."""

import torch
from torch import Tensor

from engine.interface.pooling import FRACTION_BITS

_LARGEST = 2.0**20  # so that 2**19 tokens cannot overflow; a norm's outputs are a thousandth of it


def fixed_point_sum(hidden: Tensor) -> Tensor:
    """Add up rows [num_rows, size], which must be finite; int64 [size], in units of 2**-FRACTION_BITS."""
    scaled = hidden.double().clamp_(-_LARGEST, _LARGEST).mul_(2.0**FRACTION_BITS)
    return scaled.round_().to(torch.int64).sum(dim=0)
