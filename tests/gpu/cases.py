"""Case: one comparison of a kernel with its twin."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""What the kernel gave, and what its twin did."""


@dataclass(frozen=True)
class Case:
    """A name, how to get the tensors, and how far they may be apart."""

    name: str
    pairs: Callable[[], Iterable[Pair]]
    tolerance: float


def rounding(dtype: torch.dtype) -> float:
    """Return a tolerance for results rounded to a dtype a few times over: sums in another order turn some."""
    return {torch.float32: 2e-5, torch.float16: 4e-3}.get(dtype, 3e-2)
