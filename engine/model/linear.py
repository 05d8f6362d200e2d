"""Linear: y = x W^T + b, with weights laid out once for the machine that multiplies them."""

import functools
from collections.abc import Mapping

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

    On a CPU the weight is prepacked for oneDNN, two to three times faster than F.linear for few rows. Where
    oneDNN has no bfloat16 (AVX2 alone), such a weight is widened to float32, which takes twice its memory:
    F.linear would give a row other bits in another batch there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:  # [out, in], [out]
        self.out_features, self.in_features = weight.shape
        self.dtype = packed_dtype(weight)
        self.weight = weight if self.dtype is None else _prepack(weight.to(self.dtype))
        self.bias = bias if self.dtype is None or bias is None else bias.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_rows, in_features] to [num_rows, out_features]."""
        if self.dtype is None:
            return F.linear(x, self.weight, self.bias)
        num_rows, rows = x.shape[0], x.to(self.dtype)
        if num_rows < _MIN_ROWS:
            rows = torch.cat((rows,) * _MIN_ROWS) if num_rows else rows.new_zeros(_MIN_ROWS, self.in_features)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, self.weight, self.bias, "none", [], "")
        return y[:num_rows].to(x.dtype)


def packed_dtype(weight: Tensor) -> torch.dtype | None:
    """Return the dtype in which oneDNN's prepacked linear serves this weight here; None if it does not."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    return next(filter(can_prepack, (weight.dtype, torch.float32)), None)


@functools.cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN prepacks weights of this dtype on this processor and torch version, by trying."""
    try:
        _prepack(torch.zeros(16, 16, dtype=dtype))
    except (AttributeError, RuntimeError):  # an operator that is not there, or an instruction set
        return False
    return True


def _prepack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS_HINT)
    return packed


def take_linear(weights: Weights, sizes: Mapping[str, int], in_features: int, *, bias: bool) -> Linear:
    """Take layers that share their input, each with its out_features, as one with outputs side by side."""
    weight = take_stacked(weights, {f"{name}.weight": size for name, size in sizes.items()}, in_features)
    if not bias:
        return Linear(weight)
    return Linear(weight, take_stacked(weights, {f"{name}.bias": size for name, size in sizes.items()}))


def take_stacked(weights: Weights, sizes: Mapping[str, int], *row_shape: int) -> Tensor:
    """Take tensors, each of so many rows, one below the other, straight into the one that they make."""
    stacked = torch.empty(sum(sizes.values()), *row_shape, dtype=weights.dtype, device=weights.device)
    parts = torch.split(stacked, list(sizes.values()))
    for name, part in zip(sizes, parts, strict=True):
        weights.take_into(name, part)
    return stacked
