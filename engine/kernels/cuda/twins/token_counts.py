"""Token counts and their penalties as engine/kernels/cuda/token_counts.py keeps them."""

from torch import Tensor

from engine.kernels.cuda.request_state import (
    COUNT_ROW,
    FREQUENCY_PENALTY,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    RequestState,
)
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.twins.acceptance import rows_of_tile


def penalise_by_counts(
    x: Tensor, row: int, buffers: StepBuffers, state: RequestState, counts: Tensor
) -> bool:
    """Apply the penalties to a row of logits, in place; return whether its request has a row of counts."""
    requests = buffers.row_requests
    count_row = int(state.integers(COUNT_ROW)[requests[row]])
    if count_row < 0:
        return False
    found, last = counts[count_row].clone(), row
    while last > 0 and requests[last - 1] == requests[row]:
        found[buffers.token_ids[buffers.row_tokens[last]]] += 2
        last -= 1
    columns = (REPETITION_PENALTY, FREQUENCY_PENALTY, PRESENCE_PENALTY)
    penalty, frequency, presence = (state.floats(column)[requests[row]] for column in columns)
    seen, times = found != 0, found >> 1
    x[seen] = (x / penalty).where(x > 0, x * penalty)[seen]
    x[times > 0] -= (times.float() * frequency + presence)[times > 0]
    return True


def count_tokens(
    buffers: StepBuffers,
    state: RequestState,
    shape: StepShape,
    num_accepted: Tensor,
    counts: Tensor,
) -> None:
    """Add each tile's new tokens, the accepted drafts and one more, to its request's row of counts."""
    for tile in range(shape.num_tiles):
        request, rows = rows_of_tile(buffers, tile, shape.num_rows)
        count_row = int(state.integers(COUNT_ROW)[request])
        for row in rows[: int(num_accepted[tile]) + 1] if count_row >= 0 else []:
            counts[count_row, buffers.results[row]] += 2
