"""Around the model, in plain torch: take the host's news in, and write down what a step chose."""

import torch
from torch import Tensor

from engine.interface.batch import PENDING_TOKEN
from engine.kernels.cuda.request_state import LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.step_buffers import (
    INBOX_HAS_REQUESTS,
    INBOX_HEADER,
    INBOX_UPDATES,
    INBOX_UPDATES_START,
    StepBuffers,
    StepShape,
)


def begin_decode(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Lay out a step in which every row is one token of a request, from what the device knows."""
    _apply_updates(buffers.inbox, state.table)
    count = shape.num_tokens
    if buffers.inbox[INBOX_HAS_REQUESTS]:
        buffers.decode_requests[:count] = buffers.inbox[INBOX_HEADER : INBOX_HEADER + count]
    requests = buffers.decode_requests[:count].long()
    rows = torch.arange(count, dtype=torch.int32, device=buffers.device)
    positions = state.table[requests, NEXT_POSITION]
    buffers.token_ids[:count] = state.table[requests, LAST_TOKEN]
    buffers.positions[:count] = positions
    buffers.row_positions[:count] = positions + 1
    for target in (buffers.token_requests, buffers.row_requests):
        target[:count] = requests
    for target in (buffers.tile_starts, buffers.row_tokens):
        target[:count] = rows
    buffers.tile_lengths[:count] = 1


def begin_step(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Take a step of any kind from the inbox, and put in the tokens that the step before has chosen."""
    _apply_updates(buffers.inbox, state.table)
    start = INBOX_HEADER
    for target, count in _arrays(buffers, shape):
        target[:count] = buffers.inbox[start : start + count]
        start += count
    token_ids = buffers.token_ids[: shape.num_tokens]
    requests = buffers.token_requests[: shape.num_tokens].long()
    last_tokens = state.table[requests, LAST_TOKEN]
    token_ids.copy_(torch.where(token_ids == PENDING_TOKEN, last_tokens, token_ids))


def end_step(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Remember the chosen tokens, and put the faults behind them into the results; empty the inbox."""
    count = shape.num_rows
    requests = buffers.row_requests[:count].long()
    num_rows_of = torch.bincount(requests, minlength=len(state.table))
    rows = ((num_rows_of[requests] == 1) & (requests != state.null_request)).nonzero().flatten()
    state.table[requests[rows], LAST_TOKEN] = buffers.results[rows]
    state.table[requests[rows], NEXT_POSITION] = buffers.row_positions[rows]
    faults = buffers.faults[: shape.num_tokens]
    buffers.results[count : count + shape.num_tokens] = faults
    faults.zero_()
    buffers.inbox[:INBOX_UPDATES_START] = 0


def _apply_updates(inbox: Tensor, table: Tensor) -> None:
    count, start = int(inbox[INBOX_UPDATES]), int(inbox[INBOX_UPDATES_START])
    offsets = inbox[start : start + count].long()
    table.view(-1)[offsets] = inbox[start + count : start + 2 * count]


def _arrays(buffers: StepBuffers, shape: StepShape) -> list[tuple[Tensor, int]]:
    """Return the arrays of a step in the order of the inbox, and how many numbers of each it has."""
    tokens = (buffers.token_ids, buffers.positions, buffers.token_requests)
    tiles = (buffers.tile_starts, buffers.tile_lengths)
    rows = (buffers.row_tokens, buffers.row_requests, buffers.row_positions)
    return [
        *((target, shape.num_tokens) for target in tokens),
        *((target, shape.num_tiles) for target in tiles),
        *((target, shape.num_rows) for target in rows),
    ]
