"""RMSNorm and LayerNorm of rows, inside a projection and on their own, with the same bits.

A row's sums are trees of explicit additions: a reduction operator would add in an order that follows the
layout that the compiler chooses, and so the number of rows beside.
"""

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.projection_layer import NormWeights

_CHUNK = tl.constexpr(512)  # columns that are read at once; with _GROUP it fixes the order of a row's sum
_GROUP = tl.constexpr(8)  # neighbours that are added first: what a thread holds of 16 bytes
_LANES = tl.constexpr(64)  # _CHUNK / _GROUP: sums that run along a row
_ROWS = 8  # rows whose sums run together; more would not fit in registers
_APART = {1: 4, _ROWS: 2}  # rows that run together -> chunks in flight
_BLOCK = 1024  # columns that a program of the separate kernel writes at once


@triton.jit
def _add_neighbours(tile, ROWS: tl.constexpr, WIDTH: tl.constexpr, LEFT: tl.constexpr):
    """Add neighbouring columns of [ROWS, WIDTH] until LEFT are left."""
    for level in tl.static_range(10):
        if WIDTH >> level > LEFT:
            even, odd = tl.split(tl.reshape(tile, (ROWS, (WIDTH >> level) // 2, 2)))
            tile = even + odd
    return tile


@triton.jit
def _sum_row(
    x, row_starts, row_mask, mean, depth, ROWS: tl.constexpr, SQUARED: tl.constexpr, APART: tl.constexpr
):
    """Return the sums of x, or of (x - mean)^2, over rows that start at `row_starts`: [ROWS].

    The order depends on `depth` alone. Products and sums are fused by name, not at the compiler's choice.
    """
    sums = tl.zeros((ROWS, _LANES), tl.float32)
    for first in range(0, depth, _CHUNK * APART):
        for ahead in tl.static_range(APART):
            columns = first + ahead * _CHUNK + tl.arange(0, _CHUNK)
            mask = row_mask[:, None] & (columns < depth)[None, :]
            tile = tl.load(x + row_starts[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            if SQUARED:
                tile = tl.where(mask, tile - mean[:, None], 0.0)
                even, odd = tl.split(tl.reshape(tile, (ROWS, _CHUNK // 2, 2)))
                tile = tl.fma(even, even, odd * odd)
                sums += _add_neighbours(tile, ROWS, _CHUNK // 2, _LANES)
            else:
                sums += _add_neighbours(tile, ROWS, _CHUNK, _LANES)
    # Two summands have one order; the reduction keeps the compiler from doing the tree over for each user.
    return tl.sum(_add_neighbours(sums, ROWS, _LANES, 2), axis=1)


@triton.jit
def _statistics(
    x, row_starts, row_mask, depth, eps, ROWS: tl.constexpr, IS_LAYER: tl.constexpr, APART: tl.constexpr
):
    """Return (mean, scale) of rows that run together, float32 [ROWS]."""
    mean = tl.zeros((ROWS,), tl.float32)
    if IS_LAYER:
        mean = _sum_row(x, row_starts, row_mask, mean, depth, ROWS, False, APART) / depth
    squares = _sum_row(x, row_starts, row_mask, mean, depth, ROWS, True, APART)
    return mean, tl.rsqrt(squares / depth + eps)


@triton.jit
def row_statistics(
    x,
    num_rows,
    depth,
    eps,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
    IS_LAYER: tl.constexpr,
    APART: tl.constexpr,
):
    """Return (mean, scale) of the first rows of x, float32 [ROWS]; scale: 1 / sqrt(mean((x - mean)^2) + eps).

    RMSNorm has no mean: 0 stands for it, and for both of rows past the end.
    """
    mean = tl.zeros((ROWS,), tl.float32)
    scale = mean
    block_of = tl.arange(0, ROWS) // TOGETHER
    for block in range(tl.cdiv(num_rows, TOGETHER)):
        rows = block * TOGETHER + tl.arange(0, TOGETHER)
        means, scales = _statistics(x, rows * depth, rows < num_rows, depth, eps, TOGETHER, IS_LAYER, APART)
        mean = tl.where(block_of == block, _repeat(means, ROWS, TOGETHER), mean)
        scale = tl.where(block_of == block, _repeat(scales, ROWS, TOGETHER), scale)
    return mean, scale


@triton.jit
def _repeat(values, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Lay [SIZE] values end to end until there are ROWS."""
    return tl.reshape(tl.broadcast_to(values[None, :], (ROWS // SIZE, SIZE)), (ROWS,))


@triton.jit
def normalise(x, mean, scale, weight, bias, columns, column_mask):
    """Return norm(x) of a tile [rows, columns] in its dtype; mean and scale are [rows] or [1]."""
    wide = x.to(tl.float32)
    factor = tl.load(weight + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if bias is None:
        y = (wide * scale[:, None]).to(x.dtype).to(tl.float32) * factor
    else:
        offset = tl.load(bias + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        y = tl.fma((wide - mean[:, None]) * scale[:, None], factor, offset)
    return y.to(x.dtype)


@triton.jit
def _normalise_rows(x, weight, bias, out, depth, eps, BLOCK: tl.constexpr, APART: tl.constexpr):
    """One program a row."""
    start = tl.program_id(0).to(tl.int64) * depth + tl.zeros((1,), tl.int64)
    every = tl.full((1,), 1, tl.int1)
    mean, scale = _statistics(x, start, every, depth, eps, 1, bias is not None, APART)
    for first in range(0, depth, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < depth
        places = start[:, None] + columns[None, :]
        tile = tl.load(x + places, mask=mask[None, :], other=0.0)
        tl.store(out + places, normalise(tile, mean, scale, weight, bias, columns, mask), mask=mask[None, :])


def normalise_launch(norm: NormWeights, x: Tensor, out: Tensor) -> KernelLaunch:
    """Plan the norm of rows on their own, T [M, K] to the same: the bits of a projection's own norm."""
    num_rows, depth = x.shape
    return KernelLaunch(
        kernel=_normalise_rows,
        grid=(num_rows,),
        arguments={
            "x": x,
            "weight": norm.weight,
            "bias": norm.bias,
            "out": out,
            "depth": depth,
            "eps": norm.eps,
        },
        constants={"BLOCK": _BLOCK, "APART": _APART[1]},
        options={"num_warps": 4, "num_stages": 1},
    )


def norm_constants(num_rows: int, tile_rows: int) -> dict[str, int]:
    """Return the constants with which a tile of rows takes its statistics; they change no bits.

    A single row has a form of its own, for its latency.
    """
    rows, together = (1, 1) if num_rows == 1 else (tile_rows, _ROWS)
    return {"NORM_ROWS": rows, "TOGETHER": together, "APART": _APART[together]}
