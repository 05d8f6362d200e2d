"""Rows of a quantised matrix as plain numbers: a whole matrix, or those of some tokens."""

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.quantized_formats import ROW_PADDING, ROW_TILE
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix
from engine.kernels.cuda.quantized_tiles import find_rows, load_block

_GATHERED_ROWS = 16


@triton.jit
def _dequantize(
    low, high, scales, ids, out, num_rows, num_columns, low_tiles, high_tiles, num_steps,
    FORMAT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid: row tiles of a part, groups of blocks, parts. With ids, row i of `out` is row ids[i]."""
    group = tl.program_id(1)
    targets = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stored = tl.program_id(2) * tl.num_programs(0) * ROWS + targets
    if ids is not None:
        stored = tl.load(ids + targets, mask=targets < num_rows, other=0)
    rows = find_rows(low, high, scales, stored, low_tiles, high_tiles, num_steps, FORMAT)
    out_rows = out + (tl.program_id(2) * num_rows + targets)[None, :].to(tl.int64) * num_columns
    blocks: tl.constexpr = FORMAT.num_blocks
    width: tl.constexpr = FORMAT.width
    for b in tl.static_range(blocks):
        tile = load_block(rows, group, b, FORMAT, out.dtype.element_ty)
        k = (group * blocks + b) * width + tl.arange(0, width)
        tl.store(out_rows + k[:, None], tile, mask=(targets < num_rows)[None, :] & (k < num_columns)[:, None])


def dequantize(matrix: QuantizedMatrix, out: Tensor) -> None:
    """Write the matrix to out T [num_parts * N, K]: the numbers that a quantised product multiplies."""
    dequantize_launch(matrix, None, out).run()


def dequantize_rows(matrix: QuantizedMatrix, ids: Tensor, out: Tensor) -> None:
    """Write row ids[i] of a matrix of one part to out[i]: ids int32 [M], out T [M, K] (an embedding)."""
    dequantize_launch(matrix, ids, out).run()


def dequantize_launch(matrix: QuantizedMatrix, ids: Tensor | None, out: Tensor) -> KernelLaunch:
    """Plan the dequantisation of a matrix, or of the rows `ids`."""
    if ids is not None and matrix.num_parts != 1:
        raise ValueError(f"rows are taken of a matrix of one part, not of {matrix.num_parts}")
    num_rows = matrix.num_rows if ids is None else ids.shape[0]
    row_tile = ROW_PADDING if ids is None else _GATHERED_ROWS
    num_tiles = matrix.part_tiles * ROW_TILE // row_tile if ids is None else triton.cdiv(num_rows, row_tile)
    return KernelLaunch(
        kernel=_dequantize,
        grid=(num_tiles, matrix.num_steps * matrix.layout.num_groups, matrix.num_parts),
        arguments={
            **matrix_arguments(matrix),
            "ids": ids,
            "out": out,
            "num_rows": num_rows,
            "num_columns": matrix.num_columns,
        },
        constants={"FORMAT": matrix.layout, "ROWS": row_tile},
        options={"num_warps": 4, "num_stages": 1},
        unspecialised=frozenset({"num_rows"} if ids is not None else ()),
    )


def matrix_arguments(matrix: QuantizedMatrix) -> dict[str, Tensor | int | None]:
    """Return what a kernel must be handed of a matrix."""
    return {
        "low": matrix.low,
        "high": matrix.high,
        "scales": matrix.scales,
        "low_tiles": matrix.low.shape[1],
        "high_tiles": 0 if matrix.high is None else matrix.high.shape[1],
        "num_steps": matrix.num_steps,
    }
