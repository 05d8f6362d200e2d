"""Verification of drafts: how many were right, and what the request's next step begins with."""

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.dependent_launch import wait_for_inputs
from engine.kernels.cuda.request_state import LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.variants import Variant

OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_LAST_TOKEN: tl.constexpr = tl.constexpr(LAST_TOKEN)
_NEXT_POSITION: tl.constexpr = tl.constexpr(NEXT_POSITION)
_NO_ROW: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def rows_of_tile(tile, tile_starts, tile_lengths, token_requests, row_tokens, row_requests, rows, num_rows):
    """Return the tile's request and which of `rows` are its own: padding rows may name its tokens too."""
    start = tl.load(tile_starts + tile)
    end = start + tl.load(tile_lengths + tile)
    request = tl.load(token_requests + start)
    is_row = rows < num_rows
    tokens = tl.load(row_tokens + rows, mask=is_row, other=-1)
    owners = tl.load(row_requests + rows, mask=is_row, other=-1)
    return request, is_row & (tokens >= start) & (tokens < end) & (owners == request)


@triton.jit(do_not_specialize=["state_width", "null_request", "num_rows"])
def _accept_drafts(
    tile_starts, tile_lengths, token_requests, token_ids, row_tokens, row_requests, row_positions, results,
    faults, state, state_width, null_request, num_accepted, num_rows,
    MAX_ROWS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    tile = tl.program_id(0)
    rows = tl.arange(0, MAX_ROWS)
    request, is_own = rows_of_tile(
        tile, tile_starts, tile_lengths, token_requests, row_tokens, row_requests, rows, num_rows
    )
    first = tl.min(tl.where(is_own, rows, _NO_ROW), 0)
    is_draft = is_own & (rows > first)
    tokens = tl.load(row_tokens + rows, mask=is_draft, other=0)
    chosen = tl.load(results + rows - 1, mask=is_draft, other=0)
    is_right = (tl.load(token_ids + tokens, mask=is_draft, other=0) == chosen) & (
        tl.load(faults + tokens, mask=is_draft, other=0) == 0
    )
    end = tl.max(tl.where(is_own, rows, -1), 0) + 1
    stop = tl.minimum(tl.min(tl.where(is_draft & (is_right == 0), rows, _NO_ROW), 0), end)
    has_rows = (first < num_rows) & (request != null_request)
    tl.store(num_accepted + tile, tl.where(has_rows, stop - first - 1, 0))
    if has_rows:
        place = state + request.to(tl.int64) * state_width
        tl.store(place + _LAST_TOKEN, tl.load(results + stop - 1))
        tl.store(place + _NEXT_POSITION, tl.load(row_positions + stop - 1))


def accept_drafts(
    buffers: StepBuffers,
    state: RequestState,
    shape: StepShape,
    num_accepted: Tensor,
    *,
    dependent: bool = False,
) -> None:
    """Write how many drafts of each tile were right to `num_accepted`, int32 [>= num_tiles].

    A request's rows follow one another: that of its own last token, then one after each draft, and the tokens
    of all are in one tile. A draft is right if the row before it chose it, all before it were and nothing of
    it is a fault. The request's LAST_TOKEN becomes what was chosen after the last right draft, NEXT_POSITION
    where it goes. A tile without rows, or of the null request, counts 0 and changes nothing.
    """
    _accept_drafts[(shape.num_tiles,)](
        buffers.tile_starts, buffers.tile_lengths, buffers.token_requests, buffers.token_ids,
        buffers.row_tokens, buffers.row_requests, buffers.row_positions, buffers.results, buffers.faults,
        state.table, state.width, state.null_request, num_accepted, shape.num_rows,
        MAX_ROWS=triton.next_power_of_2(buffers.max_rows), PDL=dependent, launch_pdl=dependent, **OPTIONS,
    )  # fmt: skip


def variants(num_rows: int, *, dependent: Sequence[bool] = (False,)) -> Iterator[Variant]:
    """Yield what the server may launch for a step of so many rows."""
    pointers = (
        *("tile_starts", "tile_lengths", "token_requests", "token_ids", "row_tokens", "row_requests"),
        *("row_positions", "results", "faults", "state", "num_accepted"),
    )
    signature = dict.fromkeys(pointers, "*i32")
    signature |= dict.fromkeys(("state_width", "null_request", "num_rows"), "i32")
    for pdl in dependent:
        constants = {"MAX_ROWS": triton.next_power_of_2(num_rows), "PDL": pdl}
        options = OPTIONS | {"launch_pdl": pdl}
        yield Variant(_accept_drafts, signature, constants, options, divisible_arguments(signature))
