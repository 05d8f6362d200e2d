"""What follows a product, in its kernel or in one of its own: bias, activation, gating, residual, rounding.

Every step rounds to the output's dtype, as operators in that dtype would one after the other.
"""

import triton
import triton.language as tl
from torch import Tensor

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.projection_layer import Projection

_BLOCK = 1024  # columns of a program

_SILU = tl.constexpr(Activation.SILU.value)
_GELU = tl.constexpr(Activation.GELU.value)
_INV_SQRT_2 = tl.constexpr(0.7071067811865476)
_GELU_CUBE = tl.constexpr(0.044715)
_GELU_SLOPE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """Apply an activation to float32, as engine/model/activation.py does."""
    if ACTIVATION == _GELU:
        return 0.5 * x * (1.0 + tl.erf(x * _INV_SQRT_2))
    inner = x
    if ACTIVATION != _SILU:
        inner = tl.fma(x * x * x, tl.full(x.shape, _GELU_CUBE, tl.float32), x) * _GELU_SLOPE
    return x / (1.0 + tl.exp(-inner))


@triton.jit
def _add_bias(product, bias, columns, column_mask, DTYPE: tl.constexpr):
    """Round the product, then add the bias and round again; returns float32."""
    y = product.to(DTYPE).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    return y.to(DTYPE).to(tl.float32)


@triton.jit
def finish(
    product,
    up,
    bias,
    residual,
    out,
    rows,
    columns,
    mask,
    num_columns,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
):
    """Store f(product) at rows (int64) and columns of `out`, which may be `residual`; gated: `up` is read."""
    dtype: tl.constexpr = out.dtype.element_ty
    column_mask = columns < num_columns
    y = _add_bias(product, bias, columns, column_mask, dtype)
    if ACTIVATION is not None:
        y = _activate(y, ACTIVATION).to(dtype).to(tl.float32)
    if IS_GATED:
        y = (y * _add_bias(up, bias, num_columns + columns, column_mask, dtype)).to(dtype).to(tl.float32)
    places = rows[:, None] * num_columns + columns[None, :]
    if residual is not None:
        y = tl.load(residual + places, mask=mask, other=0.0).to(tl.float32) + y
    tl.store(out + places, y.to(dtype), mask=mask)


@triton.jit
def _finish_rows(
    raw,
    bias,
    residual,
    out,
    num_columns,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row and BLOCK columns."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (columns < num_columns)[None, :]
    width = 2 * num_columns if IS_GATED else num_columns
    places = row[:, None] * width + columns[None, :]
    product = tl.load(raw + places, mask=mask, other=0.0).to(tl.float32)
    up = product
    if IS_GATED:
        up = tl.load(raw + places + num_columns, mask=mask, other=0.0).to(tl.float32)
    finish(product, up, bias, residual, out, row, columns, mask, num_columns, ACTIVATION, IS_GATED)


def finish_launch(projection: Projection, raw: Tensor, out: Tensor, residual: Tensor | None) -> KernelLaunch:
    """Plan what follows a product [M, out_rows] that was stored without it."""
    num_rows, num_columns = out.shape
    return KernelLaunch(
        kernel=_finish_rows,
        grid=(num_rows, triton.cdiv(num_columns, _BLOCK)),
        arguments={
            "raw": raw,
            "bias": projection.bias,
            "residual": residual,
            "out": out,
            "num_columns": num_columns,
        },
        constants={
            "ACTIVATION": activation_name(projection),
            "IS_GATED": projection.is_gated,
            "BLOCK": _BLOCK,
        },
        options={"num_warps": 4, "num_stages": 1},
    )


def activation_name(projection: Projection) -> str | None:
    """Return what kernels call a layer's activation."""
    return None if projection.activation is None else projection.activation.value
