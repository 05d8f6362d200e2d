"""The product of many rows: one program a tile of rows and columns, which walks all pieces of K in order.

The sums are those of few rows, bit for bit: on the matrix units an element's sum depends on the cut of K
alone, not on the tile. Tiles come through descriptors (TMA) where the card has them and rows are multiples of
16 bytes, else through pointers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.cuda.epilogue import activation_name, finish
from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.projection_layer import PIECE_MULTIPLE, Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace

_ALIGNMENT = 16  # bytes of a descriptor's address and of its rows
_GROUP = 8  # tiles of rows that follow each other over the same columns, for the L2 cache
_FULL = 120  # programs that about fill a card, of 108 to 148 multiprocessors


class _Tile(NamedTuple):
    rows: int
    columns: int
    step: int  # input columns of an iteration; divides PIECE_MULTIPLE
    num_warps: int
    num_stages: int


_SMALL = _Tile(64, 64, PIECE_MULTIPLE, 4, 4)
_LARGE = _Tile(128, 128, PIECE_MULTIPLE, 8, 4)
_FLOAT32 = _Tile(64, 64, 32, 8, 3)  # no matrix units: products of float32 run in registers


@triton.jit
def _load(
    source, first, limit, start, depth,
    ROWS: tl.constexpr, STEP: tl.constexpr, BY_DESCRIPTOR: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Load [ROWS, STEP] at row `first` and input column `start`; what lies past the end of K is 0."""
    if BY_DESCRIPTOR:
        tile = source.load([first, start])
    else:
        # Rows past the end repeat the last one and are not stored.
        rows = tl.minimum(first + tl.arange(0, ROWS), limit - 1).to(tl.int64)
        k = start + tl.arange(0, STEP)
        places = source + rows[:, None] * depth + k[None, :]
        tile = tl.load(places) if IS_EVEN else tl.load(places, mask=(k < depth)[None, :], other=0.0)
    return tile


@triton.jit
def _tile_of(program, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """Return (first row, first column) of a program's tile: GROUP tiles of rows, then the next columns."""
    row_tiles = tl.cdiv(num_rows, ROWS)
    in_group = GROUP * tl.cdiv(num_columns, COLUMNS)
    group = program // in_group * GROUP
    size = tl.minimum(row_tiles - group, GROUP)
    within = program % in_group
    return (group + within % size) * ROWS, within // size * COLUMNS


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_many_rows(
    x, weight, bias, residual, out, num_rows, num_columns, depth, piece_size,
    ACTIVATION: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, GROUP: tl.constexpr, BY_DESCRIPTOR: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Multiply; x and weight are pointers, or descriptors of [ROWS, STEP] and [COLUMNS, STEP]."""
    first_row, first_column = _tile_of(tl.program_id(0), num_rows, num_columns, ROWS, COLUMNS, GROUP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for piece in range(PIECES):
        begin = piece * piece_size
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(begin, tl.minimum(begin + piece_size, depth), STEP):
            rows = _load(x, first_row, num_rows, start, depth, ROWS, STEP, BY_DESCRIPTOR, IS_EVEN)
            columns = _load(
                weight, first_column, num_columns, start, depth, COLUMNS, STEP, BY_DESCRIPTOR, IS_EVEN
            )
            acc = tl.dot(rows, tl.trans(columns), acc, input_precision="ieee")
        total += acc
    rows = first_row + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    finish(
        total, total, bias, residual, out, rows.to(tl.int64), columns, mask, num_columns, ACTIVATION, False
    )


def many_rows_launch(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    residual: Tensor | None,
) -> KernelLaunch:
    """Plan the product of x, rows after their norm, with the weight, and what follows it except gating.

    Of a gated layer `out` is the raw product [M, 2N], and nothing follows.
    """
    num_rows, depth = x.shape
    weight, cut = projection.weight, projection.cut
    num_columns = weight.shape[0]
    tile = _choose_tile(num_rows, num_columns, weight.dtype)
    by_descriptor = workspace.has_descriptors and weight.dtype != torch.float32 and _fit(x, weight)
    row_tiles, column_tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_columns, tile.columns)
    return KernelLaunch(
        kernel=_multiply_many_rows,
        grid=(row_tiles * column_tiles,),
        arguments={
            "x": _describe(x, tile.rows, tile.step) if by_descriptor else x,
            "weight": _describe(weight, tile.columns, tile.step) if by_descriptor else weight,
            "bias": None if projection.is_gated else projection.bias,
            "residual": residual,
            "out": out,
            "num_rows": num_rows,
            "num_columns": num_columns,
            "depth": depth,
            "piece_size": cut.piece_size,
        },
        constants={
            "ACTIVATION": None if projection.is_gated else activation_name(projection),
            "PIECES": cut.num_pieces,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "STEP": tile.step,
            "GROUP": _GROUP,
            "BY_DESCRIPTOR": by_descriptor,
            "IS_EVEN": depth % tile.step == 0,
        },
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
        unspecialised=frozenset({"num_rows"}),
    )


def _choose_tile(num_rows: int, num_columns: int, dtype: torch.dtype) -> _Tile:
    if dtype == torch.float32:
        return _FLOAT32
    is_full = triton.cdiv(num_rows, _LARGE.rows) * triton.cdiv(num_columns, _LARGE.columns) >= _FULL
    return _LARGE if num_rows > _SMALL.rows and is_full else _SMALL


def _fit(*tensors: Tensor) -> bool:
    """Tell whether descriptors can be made of tensors."""
    return all(
        tensor.data_ptr() % _ALIGNMENT == 0 and tensor.stride(0) * tensor.element_size() % _ALIGNMENT == 0
        for tensor in tensors
    )


def _describe(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])
