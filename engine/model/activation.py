"""Non-linearities whose result for an element does not depend on its place in the tensor.

torch's own silu and tanh-gelu round differently in the last few elements of a piece of work than in the
rest, and where a piece ends depends on the batch; so does its erf-gelu of bfloat16 without AVX-512. exp,
products, quotients and the erf-gelu of float32 do not.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.model_config import Activation


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the activation in float32; returns the dtype of `x`."""
    wide = x.float()
    if activation is Activation.GELU:
        return F.gelu(wide).to(x.dtype)
    inner = wide if activation is Activation.SILU else _gelu_slope(wide)
    return (wide / torch.exp(-inner).add_(1.0)).to(x.dtype)


def _gelu_slope(x: Tensor) -> Tensor:
    """Return z such that x * sigmoid(z) is GELU's tanh approximation (arXiv 1606.08415)."""
    return (x * x * x * 0.044715 + x) * (2.0 * math.sqrt(2.0 / math.pi))
