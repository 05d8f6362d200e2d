"""Attention of a step's query tokens to the keys and values in their requests' blocks."""

import math
from collections.abc import Iterable, Iterator
from itertools import product

from torch import Tensor

from engine.kernels.cuda.attention_kernel import attend_tiles
from engine.kernels.cuda.attention_plan import Heads, cut_tiles, launch_options, plan_attention
from engine.kernels.cuda.attention_workspace import AttentionWorkspace
from engine.kernels.cuda.dtype_names import TRITON_NAMES
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.variants import Variant


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    out: Tensor,
    shape: StepShape,
    workspace: AttentionWorkspace,
    *,
    scale: float,
    window: int | None = None,
    dependent: bool = False,
) -> None:
    """Attend each query token of the tiles to its request's positions up to its own.

    query T [num_tokens, num_heads, head_dim]; keys, values T [num_blocks + 1, num_kv_heads, block_size,
    head_dim], with those of this step written; out T [num_tokens, num_heads * head_dim]; all contiguous.
    Tiles are those of `buffers`, of at most shape.tile_tokens tokens. `scale`, above 0, is that of the
    scores; `window`: how many positions a token sees, its own among them. `dependent`: as in embed().
    """
    assert scale > 0.0
    tiling = workspace.tiling(shape)
    num_split_programs = workspace.num_split_programs(shape)
    plan = workspace.plan(shape, block_size=keys.shape[2], has_window=window is not None)
    options = workspace.launch_options(shape)
    grid = (shape.num_tiles * tiling.tile_programs, workspace.heads.num_kv_heads, num_split_programs)
    attend_tiles[grid](
        query,
        keys,
        values,
        state.block_tables,
        buffers.token_requests,
        buffers.positions,
        buffers.tile_starts,
        buffers.tile_lengths,
        out,
        workspace.partials,
        workspace.counters,
        scale * math.log2(math.e),
        window or 0,
        state.width,
        tiling.tile_programs,
        tiling.program_tokens,
        workspace.max_splits,
        plan=plan,
        PDL=dependent,
        **options._asdict(),
        **({"launch_pdl": True} if dependent else {}),
    )


def variants(
    heads: Heads,
    *,
    block_size: int,
    tile_tokens: Iterable[int],
    windows: Iterable[int | None] = (None,),
) -> Iterator[Variant]:
    """Yield what attend() launches for steps of tiles of these sizes, with splits shared and not."""
    number = f"*{TRITON_NAMES[heads.dtype]}"
    pointers = dict.fromkeys(("query", "keys", "values", "out"), number)
    pointers |= dict.fromkeys(("block_tables", "token_requests", "positions"), "*i32")
    pointers |= {"tile_starts": "*i32", "tile_lengths": "*i32", "partials": "*fp32", "counters": "*i32"}
    integers = ("window", "table_width", "tile_programs", "program_tokens", "max_splits")
    signature = pointers | {"score_scale": "fp32"} | dict.fromkeys(integers, "i32")
    tilings = {(tiling := cut_tiles(heads, tokens)).rows: tiling for tokens in tile_tokens}
    has_windows = sorted({window is not None for window in windows})
    for tiling, has_window, is_parallel in product(tilings.values(), has_windows, (False, True)):
        plan = plan_attention(
            heads, tiling, block_size=block_size, has_window=has_window, is_parallel=is_parallel
        )
        options = launch_options(heads, tiling)._asdict()
        constants = {"plan": plan, "PDL": False}
        yield Variant(attend_tiles, signature, constants, options, frozenset(pointers))
