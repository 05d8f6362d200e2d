"""Products with a matrix that stays as a GGUF file stores it: reading its few bits is what bounds them.

K keeps its ascending order and the cut of the plain projection of the same shape, and the weights are
decoded to the T that `dequantize` writes; so the bits are those of a plain projection of the dequantised
matrix, at any number of rows, by whatever kernel. A group that a piece's end divides is decoded for both
pieces, with x taken as 0 outside of the piece: zeros change no sum.

Few rows: one kernel does the whole projection (as `few_rows`). Many rows: the norm has a kernel of its own,
and a program walks all pieces of a tile of rows. It decodes the weights once for each tile of 64 rows;
`dequantize` into scratch and a plain product decode them once for all rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.dependent_launch import wait_for_inputs
from engine.kernels.cuda.dequantize import dequantize_launch, matrix_arguments
from engine.kernels.cuda.epilogue import finish
from engine.kernels.cuda.few_rows import _collect, _publish
from engine.kernels.cuda.kernel_launch import Argument, KernelLaunch, distinct_variants
from engine.kernels.cuda.norm import norm_constants, normalise, normalise_launch, row_statistics
from engine.kernels.cuda.projection_workspace import FEW_ROWS, ProjectionWorkspace
from engine.kernels.cuda.quantized_formats import ROW_PADDING, ROW_TILE
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.quantized_tiles import find_rows, load_block
from engine.kernels.cuda.variants import Variant

_MIN_ROWS = 16  # of an operand of the matrix units
_MANY_ROWS = 64  # a tile of rows where one program walks all pieces
_WIDE = 16384  # weight rows from which tiles of 64 columns still keep a card busy


@triton.jit
def _load_input(
    x, norm_weight, norm_bias, mean, scale, row_starts, row_mask, k, begin, end, IS_EVEN: tl.constexpr
):
    """Load norm(x) of the columns k, 0 outside of [begin, end)."""
    within = k < end
    mask = row_mask[:, None]
    if not IS_EVEN:
        within = within & (k >= begin)
        mask = mask & within[None, :]
    tile = tl.load(x + row_starts[:, None] + k[None, :], mask=mask, other=0.0)
    if norm_weight is not None:
        tile = normalise(tile, mean, scale, norm_weight, norm_bias, k, within)
    return tile


@triton.jit
def _multiply(
    x, norm_weight, norm_bias, mean, scale, row_starts, row_mask, gate_rows, up_rows, begin, end,
    COLUMNS: tl.constexpr, IS_GATED: tl.constexpr, IS_EVEN: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Return norm(x) times the rows `gate_rows` (and `up_rows`) over input columns [begin, end)."""
    dtype: tl.constexpr = x.dtype.element_ty
    blocks: tl.constexpr = FORMAT.num_blocks
    width: tl.constexpr = FORMAT.width
    acc = tl.zeros((row_starts.shape[0], COLUMNS), tl.float32)
    up = acc
    for group in range(begin // (blocks * width), tl.cdiv(end, blocks * width)):
        for b in tl.static_range(blocks):
            k = (group * blocks + b) * width + tl.arange(0, width)
            tile = _load_input(
                x, norm_weight, norm_bias, mean, scale, row_starts, row_mask, k, begin, end, IS_EVEN
            )
            block = load_block(gate_rows, group, b, FORMAT, dtype)
            acc = tl.dot(tile, block, acc, input_precision="ieee")
            if IS_GATED:
                block = load_block(up_rows, group, b, FORMAT, dtype)
                up = tl.dot(tile, block, up, input_precision="ieee")
    return acc, up


@triton.jit(do_not_specialize=["num_rows"])
def _project_few_rows(
    x, low, high, scales, norm_weight, norm_bias, bias, residual, out, partials, counters,
    num_rows, num_columns, depth, piece_size, low_tiles, high_tiles, num_steps, part_rows, eps,
    ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr, PIECES: tl.constexpr, IS_EVEN: tl.constexpr,
    FORMAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NORM_ROWS: tl.constexpr,
    TOGETHER: tl.constexpr, APART: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: column tiles, pieces. NORM_ROWS: 1 where there is one row, else ROWS."""
    rows = tl.arange(0, ROWS)
    row_mask = rows < num_rows
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    gate = find_rows(low, high, scales, columns, low_tiles, high_tiles, num_steps, FORMAT)
    second = find_rows(low, high, scales, part_rows + columns, low_tiles, high_tiles, num_steps, FORMAT)
    wait_for_inputs(PDL)
    mean = tl.zeros((NORM_ROWS,), tl.float32)
    scale = mean
    if norm_weight is not None:
        is_layer: tl.constexpr = norm_bias is not None
        mean, scale = row_statistics(x, num_rows, depth, eps, NORM_ROWS, TOGETHER, is_layer, APART)
    begin = tl.program_id(1) * piece_size
    end = tl.minimum(begin + piece_size, depth)
    acc, up = _multiply(
        x, norm_weight, norm_bias, mean, scale, rows * depth, row_mask, gate, second, begin, end,
        COLUMNS, IS_GATED, IS_EVEN, FORMAT,
    )  # fmt: skip
    mask = row_mask[:, None] & (columns < num_columns)[None, :]
    if PIECES > 1:
        places = rows[:, None] * num_columns + columns[None, :]
        counter = counters + tl.program_id(0)
        size = num_rows * num_columns
        if not _publish(acc, up, partials, counter, places, mask, size, PIECES, IS_GATED):
            return
        tl.store(counter, 0)
        acc, up = _collect(acc, partials, places, mask, size, PIECES, IS_GATED)
    finish(acc, up, bias, residual, out, rows.to(tl.int64), columns, mask, num_columns, ACTIVATION, IS_GATED)


@triton.jit(do_not_specialize=["num_rows"])
def _project_many_rows(
    x, low, high, scales, bias, residual, out,
    num_rows, num_columns, depth, piece_size, low_tiles, high_tiles, num_steps, part_rows,
    ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr, PIECES: tl.constexpr, IS_EVEN: tl.constexpr,
    FORMAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid: row tiles, column tiles; a program walks the pieces. The rows' norm is done."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    row_mask = rows < num_rows
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    gate = find_rows(low, high, scales, columns, low_tiles, high_tiles, num_steps, FORMAT)
    second = find_rows(low, high, scales, part_rows + columns, low_tiles, high_tiles, num_steps, FORMAT)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = acc
    for piece in range(PIECES):
        begin = piece * piece_size
        end = tl.minimum(begin + piece_size, depth)
        sums, up_sums = _multiply(
            x, None, None, None, None, rows * depth, row_mask, gate, second, begin, end,
            COLUMNS, IS_GATED, IS_EVEN, FORMAT,
        )  # fmt: skip
        acc += sums
        up += up_sums
    mask = row_mask[:, None] & (columns < num_columns)[None, :]
    finish(acc, up, bias, residual, out, rows, columns, mask, num_columns, ACTIVATION, IS_GATED)


def project_quantized(
    projection: QuantizedProjection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    *,
    residual: Tensor | None = None,
    dependent: bool = False,
) -> None:
    """Compute a whole projection of x T [M, K] to out [M, N] of the projection's `out_dtype`.

    `residual`, of the shape and dtype of `out` and perhaps the same memory, is added last. `dependent`: a
    kernel of few rows starts while the one before still runs.
    """
    for launch in projection_launches(projection, x, out, workspace, residual, dependent=dependent):
        launch.run()


def projection_launches(
    projection: QuantizedProjection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    residual: Tensor | None,
    *,
    dependent: bool,
) -> Iterator[KernelLaunch]:
    """Yield the launches of a projection in their order."""
    is_few = x.shape[0] <= FEW_ROWS
    if projection.norm is not None and not (is_few and projection.has_fused_norm):
        normalised = workspace.normalised(*x.shape)
        yield normalise_launch(projection.norm, x, normalised)
        x, projection = normalised, replace(projection, norm=None)
    if is_few:
        yield _few_rows_launch(projection, x, out, workspace, residual, dependent=dependent)
    else:
        yield _many_rows_launch(projection, x, out, residual)


def _few_rows_launch(
    projection: QuantizedProjection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    residual: Tensor | None,
    *,
    dependent: bool,
) -> KernelLaunch:
    norm, pieces = projection.norm, projection.cut.num_pieces
    num_rows = x.shape[0]
    rows = max(_MIN_ROWS, triton.next_power_of_2(num_rows))
    columns = 64 if projection.out_rows >= _WIDE else 32
    return KernelLaunch(
        kernel=_project_few_rows,
        grid=(triton.cdiv(projection.num_columns, columns), pieces),
        arguments={
            **_arguments(projection, x, out, residual),
            "norm_weight": None if norm is None else norm.weight,
            "norm_bias": None if norm is None else norm.bias,
            "partials": workspace.partials if pieces > 1 else None,
            "counters": workspace.counters if pieces > 1 else None,
            "eps": 0.0 if norm is None else norm.eps,
        },
        constants={
            **_constants(projection),
            "ROWS": rows,
            "COLUMNS": columns,
            **norm_constants(1 if norm is None else num_rows, rows),
            "PDL": dependent,
        },
        options={"num_warps": 4, "num_stages": 4, **({"launch_pdl": True} if dependent else {})},
        unspecialised=frozenset({"num_rows"}),
    )


def _many_rows_launch(
    projection: QuantizedProjection, x: Tensor, out: Tensor, residual: Tensor | None
) -> KernelLaunch:
    columns = ROW_PADDING
    return KernelLaunch(
        kernel=_project_many_rows,
        grid=(triton.cdiv(x.shape[0], _MANY_ROWS), triton.cdiv(projection.num_columns, columns)),
        arguments=_arguments(projection, x, out, residual),
        constants={**_constants(projection), "ROWS": _MANY_ROWS, "COLUMNS": columns},
        options={"num_warps": 4, "num_stages": 3},
        unspecialised=frozenset({"num_rows"}),
    )


def _arguments(
    projection: QuantizedProjection, x: Tensor, out: Tensor, residual: Tensor | None
) -> dict[str, Argument]:
    return {
        "x": x,
        **matrix_arguments(projection.weight),
        "bias": projection.bias,
        "residual": residual,
        "out": out,
        "num_rows": x.shape[0],
        "num_columns": projection.num_columns,
        "depth": projection.depth,
        "piece_size": projection.cut.piece_size,
        "part_rows": projection.weight.part_tiles * ROW_TILE,
    }


def _constants(projection: QuantizedProjection) -> dict[str, object]:
    layout = projection.weight.layout
    group = layout.step // layout.num_groups
    return {
        "ACTIVATION": None if projection.activation is None else projection.activation.value,
        "IS_GATED": projection.is_gated,
        "PIECES": projection.cut.num_pieces,
        "IS_EVEN": projection.depth % group == 0 and projection.cut.piece_size % group == 0,
        "FORMAT": layout,
    }


def variants(
    projection: QuantizedProjection,
    workspace: ProjectionWorkspace,
    row_counts: Iterable[int],
    *,
    dtype: torch.dtype,
    has_residual: bool = False,
    dependent: bool = False,
) -> Iterator[Variant]:
    """Yield what is compiled for a projection at some numbers of rows, its dequantisation included."""
    device = workspace.partials.device

    def launches() -> Iterator[KernelLaunch]:
        for num_rows in row_counts:
            x = torch.empty(num_rows, projection.depth, dtype=dtype, device=device)
            out = torch.empty(num_rows, projection.num_columns, dtype=projection.out_dtype, device=device)
            residual = out if has_residual else None
            yield from projection_launches(projection, x, out, workspace, residual, dependent=dependent)
        plain = torch.empty(projection.out_rows, projection.depth, dtype=dtype, device=device)
        yield dequantize_launch(projection.weight, None, plain)

    return distinct_variants(launches())
