"""Linear: y = x W^T + b, with weights laid out once for the machine that multiplies them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.weights import Weights

# The layout that oneDNN chooses for one row gives other bits than its layout for many; with the latter
# every row count from 2 up gives the same bits for a row (tests/engine/model/test_linear.py).
_PACK_ROWS_HINT = 128
_MIN_ROWS = 2


class Linear:
    """A dense layer whose result for a row does not depend on the rows beside it.

    On a CPU the weight is prepacked for oneDNN, two to three times faster than F.linear for few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:  # [out, in], [out]
        self.out_features, self.in_features = weight.shape
        self.is_packed = can_prepack(weight)
        self.weight = _prepack(weight) if self.is_packed else weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_rows, in_features] to [num_rows, out_features]."""
        if not self.is_packed:
            return F.linear(x, self.weight, self.bias)
        num_rows = x.shape[0]
        if num_rows < _MIN_ROWS:
            x = torch.cat((x,) * _MIN_ROWS) if num_rows else x.new_zeros(_MIN_ROWS, self.in_features)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return y[:num_rows]


def can_prepack(weight: Tensor) -> bool:
    """Tell whether oneDNN's prepacked linear serves this weight on this machine and torch version."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _prepack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS_HINT)
    return packed


def take_linear(
    weights: Weights, names: tuple[str, ...], in_features: int, out_features: tuple[int, ...], *, bias: bool
) -> Linear:
    """Take one or several layers that share their input and fuse them into one, outputs side by side."""
    sizes = list(zip(names, out_features, strict=True))
    weight = torch.cat([weights.take(f"{name}.weight", size, in_features) for name, size in sizes])
    bias_tensor = torch.cat([weights.take(f"{name}.bias", size) for name, size in sizes]) if bias else None
    return Linear(weight, bias_tensor)
