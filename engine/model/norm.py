"""RMSNorm and LayerNorm over the last dimension, computed in float32 whatever the dtype of the model."""

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, *, eps: float) -> None:  # [size]
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [..., size]."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True).add_(self.eps))
        return (wide * scale).to(x.dtype) * self.weight  # rounded before the weight, as in training code


class LayerNorm:
    """(x - mean) / std * weight + bias over the last dimension."""

    def __init__(self, weight: Tensor, bias: Tensor, *, eps: float) -> None:  # [size], [size]
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [..., size]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
