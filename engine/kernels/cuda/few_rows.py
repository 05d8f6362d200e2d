"""A whole projection of few rows in one kernel: norm, product, bias, activation, gating and residual.

Reading the weight bounds it. A program owns a tile of columns, all rows and one piece of K; of the programs
of a tile the last one to arrive adds the pieces' sums in ascending order, so the order is always the same.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

from engine.kernels.cuda.epilogue import activation_name, finish
from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.norm import norm_constants, normalise, row_statistics
from engine.kernels.cuda.projection_layer import PIECE_MULTIPLE, Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace

_MIN_ROWS = 16  # of an operand of the matrix units
_STEP = PIECE_MULTIPLE  # input columns of an iteration
_WIDE = 8192  # output columns from which tiles of 64 still keep a card busy


@triton.jit
def _prefetch(weight, rows, start):
    """Ask for the first 128 bytes of the program's part of each weight row, into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [weight + rows + start],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _multiply(
    x, weight, norm_weight, norm_bias, mean, scale, rows, row_mask, first, second, depth, begin, end,
    IS_GATED: tl.constexpr, IS_EVEN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Return norm(x) times the weight rows at `first` (and at `second`) over input columns [begin, end)."""
    acc = tl.zeros((rows.shape[0], first.shape[0]), tl.float32)
    up = acc
    for start in range(begin, end, STEP):
        k = start + tl.arange(0, STEP)
        within = k < depth
        tile = tl.load(
            x + rows[:, None] * depth + k[None, :], mask=row_mask[:, None] & within[None, :], other=0.0
        )
        if norm_weight is not None:
            tile = normalise(tile, mean, scale, norm_weight, norm_bias, k, within)
        acc = tl.dot(tile, _weight_tile(weight, first, k, within, IS_EVEN), acc, input_precision="ieee")
        if IS_GATED:
            up = tl.dot(tile, _weight_tile(weight, second, k, within, IS_EVEN), up, input_precision="ieee")
    return acc, up


@triton.jit
def _weight_tile(weight, row_starts, k, within, IS_EVEN: tl.constexpr):
    """Load [STEP, columns] of the weight; every row exists, so only the end of K needs a mask."""
    places = weight + row_starts[:, None] + k[None, :]
    tile = tl.load(places) if IS_EVEN else tl.load(places, mask=within[None, :], other=0.0)
    return tl.trans(tile)


@triton.jit
def _publish(acc, up, partials, counter, places, mask, size, PIECES: tl.constexpr, IS_GATED: tl.constexpr):
    """Store a piece's sums; returns whether every other piece of the tile has done so."""
    planes: tl.constexpr = 2 if IS_GATED else 1
    own = partials + tl.program_id(1) * planes * size + places
    tl.store(own, acc, mask=mask)
    if IS_GATED:
        tl.store(own + size, up, mask=mask)
    tl.debug_barrier()  # every thread has stored before one of them tells
    return tl.atomic_add(counter, 1, sem="acq_rel") == PIECES - 1


@triton.jit
def _collect(acc, partials, places, mask, size, PIECES: tl.constexpr, IS_GATED: tl.constexpr):
    """Return the sums over all pieces in ascending order, read past the L1 cache: others wrote them."""
    planes: tl.constexpr = 2 if IS_GATED else 1
    total = tl.zeros_like(acc)
    up = total
    for piece in tl.static_range(PIECES):
        other = partials + piece * planes * size + places
        total += tl.load(other, mask=mask, other=0.0, cache_modifier=".cg")
        if IS_GATED:
            up += tl.load(other + size, mask=mask, other=0.0, cache_modifier=".cg")
    return total, up


@triton.jit(do_not_specialize=["num_rows"])
def _project_few_rows(
    x, weight, norm_weight, norm_bias, bias, residual, out, partials, counters,
    num_rows, num_columns, depth, piece_size, eps,
    ACTIVATION: tl.constexpr, IS_GATED: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, STEP: tl.constexpr, IS_EVEN: tl.constexpr, NORM_ROWS: tl.constexpr,
    TOGETHER: tl.constexpr, APART: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: column tiles, pieces. NORM_ROWS: 1 where there is one row, else ROWS."""
    rows = tl.arange(0, ROWS)
    row_mask = rows < num_rows
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    # Columns past the end repeat the last one and are not stored.
    present = tl.minimum(columns, num_columns - 1)
    first = present.to(tl.int64) * depth
    second = (present + num_columns).to(tl.int64) * depth
    begin = tl.program_id(1) * piece_size
    if PDL:
        tl_cuda.gdc_launch_dependents()
        _prefetch(weight, first, begin)
        tl_cuda.gdc_wait()
    mean = tl.zeros((NORM_ROWS,), tl.float32)
    scale = mean
    if norm_weight is not None:
        is_layer: tl.constexpr = norm_bias is not None
        mean, scale = row_statistics(x, num_rows, depth, eps, NORM_ROWS, TOGETHER, is_layer, APART)
    end = tl.minimum(begin + piece_size, depth)
    acc, up = _multiply(
        x, weight, norm_weight, norm_bias, mean, scale, rows, row_mask, first, second, depth, begin, end,
        IS_GATED, IS_EVEN, STEP,
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


def few_rows_launch(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    residual: Tensor | None,
    *,
    dependent: bool,
) -> KernelLaunch:
    """Plan a projection of at most FEW_ROWS rows; `dependent`: it starts while the one before still runs."""
    num_rows, depth = x.shape
    cut, norm = projection.cut, projection.norm
    columns = 64 if projection.num_columns >= _WIDE else 32
    rows = max(_MIN_ROWS, triton.next_power_of_2(num_rows))
    return KernelLaunch(
        kernel=_project_few_rows,
        grid=(triton.cdiv(projection.num_columns, columns), cut.num_pieces),
        arguments={
            "x": x,
            "weight": projection.weight,
            "norm_weight": None if norm is None else norm.weight,
            "norm_bias": None if norm is None else norm.bias,
            "bias": projection.bias,
            "residual": residual,
            "out": out,
            "partials": workspace.partials if cut.num_pieces > 1 else None,
            "counters": workspace.counters if cut.num_pieces > 1 else None,
            "num_rows": num_rows,
            "num_columns": projection.num_columns,
            "depth": depth,
            "piece_size": cut.piece_size,
            "eps": 0.0 if norm is None else norm.eps,
        },
        constants={
            "ACTIVATION": activation_name(projection),
            "IS_GATED": projection.is_gated,
            "PIECES": cut.num_pieces,
            "ROWS": rows,
            "COLUMNS": columns,
            "STEP": _STEP,
            "IS_EVEN": depth % _STEP == 0,
            **norm_constants(1 if norm is None else num_rows, rows),
            "PDL": dependent,
        },
        options={"num_warps": 4, "num_stages": 4, **({"launch_pdl": True} if dependent else {})},
        unspecialised=frozenset({"num_rows"}),
    )
