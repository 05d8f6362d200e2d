"""Verification of drafts as engine/kernels/cuda/acceptance.py does it, tile by tile."""

from torch import Tensor

from engine.kernels.cuda.request_state import LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape


def accept_drafts(
    buffers: StepBuffers,
    state: RequestState,
    shape: StepShape,
    num_accepted: Tensor,
    *,
    dependent: bool = False,  # noqa: ARG001 - as the kernel's
) -> None:
    """Write how many drafts of each tile were right to `num_accepted`, int32 [>= num_tiles]."""
    for tile in range(shape.num_tiles):
        request, rows = rows_of_tile(buffers, tile, shape.num_rows)
        num_accepted[tile] = 0
        if not rows or request == state.null_request:
            continue
        last = rows[0]
        for row in rows[1:]:
            token = buffers.row_tokens[row]
            if buffers.token_ids[token] != buffers.results[row - 1] or buffers.faults[token]:
                break
            last = row
        num_accepted[tile] = last - rows[0]
        state.integers(LAST_TOKEN)[request] = buffers.results[last]
        state.integers(NEXT_POSITION)[request] = buffers.row_positions[last]


def rows_of_tile(buffers: StepBuffers, tile: int, num_rows: int) -> tuple[int, list[int]]:
    """Return the tile's request and its rows."""
    start = int(buffers.tile_starts[tile])
    end = start + int(buffers.tile_lengths[tile])
    request = int(buffers.token_requests[start])
    places = zip(
        buffers.row_tokens[:num_rows].tolist(), buffers.row_requests[:num_rows].tolist(), strict=True
    )
    rows = [row for row, (token, owner) in enumerate(places) if start <= token < end and owner == request]
    return request, rows
