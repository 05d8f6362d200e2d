"""What is promised of an engine's answers: equal bits, or equal within rounding, and then why."""

from typing import NamedTuple

import torch

from engine.interface.info import NumericsLevel


class Numerics(NamedTuple):
    """A promise, and for the weaker one its reason."""

    level: NumericsLevel
    reason: str | None = None


BITWISE = Numerics("bitwise")
_TORCH_ON_CUDA = Numerics("tolerance", "cuBLAS chooses its kernels by the number of rows")


def torch_numerics(device: torch.device) -> Numerics:
    """Return what plain torch promises on a device: oneDNN's products keep a row's bits, cuBLAS's do not."""
    return BITWISE if device.type == "cpu" else _TORCH_ON_CUDA
