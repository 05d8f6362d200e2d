"""Kernels around the model: take the host's news in, and write down what a step chose for the next one."""

import triton
import triton.language as tl

from engine.interface.batch import PENDING_TOKEN
from engine.kernels.cuda.request_state import LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.step_buffers import INBOX_HEADER, StepBuffers, StepShape

_BLOCK = 256  # numbers that a program handles at once
_UPDATE_PROGRAMS = 16
_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_LAST_TOKEN = tl.constexpr(LAST_TOKEN)
_NEXT_POSITION = tl.constexpr(NEXT_POSITION)
_PENDING = tl.constexpr(PENDING_TOKEN)
_HEADER = tl.constexpr(INBOX_HEADER)


def begin_decode(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Lay out a step in which every row is one token of a request, from what the device knows.

    The inbox holds the updates and, where its header says so, the requests of the rows.
    """
    _apply_updates[(_UPDATE_PROGRAMS,)](buffers.inbox, state.table, BLOCK=_BLOCK, **_OPTIONS)
    _begin_decode[(triton.cdiv(shape.num_tokens, _BLOCK),)](
        buffers.inbox,
        buffers.decode_requests,
        state.table,
        buffers.token_ids,
        buffers.positions,
        buffers.token_requests,
        buffers.tile_starts,
        buffers.tile_lengths,
        buffers.row_tokens,
        buffers.row_requests,
        buffers.row_positions,
        shape.num_tokens,
        state.width,
        BLOCK=_BLOCK,
        **_OPTIONS,
    )


def begin_step(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Take a step of any kind from the inbox, and put in the tokens that the step before has chosen."""
    _apply_updates[(_UPDATE_PROGRAMS,)](buffers.inbox, state.table, BLOCK=_BLOCK, **_OPTIONS)
    longest = max(shape.num_tokens, shape.num_tiles, shape.num_rows)
    _begin_step[(triton.cdiv(longest, _BLOCK),)](
        buffers.inbox,
        state.table,
        buffers.token_ids,
        buffers.positions,
        buffers.token_requests,
        buffers.tile_starts,
        buffers.tile_lengths,
        buffers.row_tokens,
        buffers.row_requests,
        buffers.row_positions,
        shape.num_tokens,
        shape.num_tiles,
        shape.num_rows,
        state.width,
        BLOCK=_BLOCK,
        **_OPTIONS,
    )


def end_step(buffers: StepBuffers, state: RequestState, shape: StepShape) -> None:
    """Remember the chosen tokens, and put the faults behind them into the results; the inbox is empty then.

    A request of several rows remembers none: accept_drafts() does that, which knows what was accepted.
    """
    longest = max(shape.num_tokens, shape.num_rows)
    _end_step[(triton.cdiv(longest, _BLOCK),)](
        buffers.inbox,
        state.table,
        buffers.results,
        buffers.faults,
        buffers.row_requests,
        buffers.row_positions,
        shape.num_tokens,
        shape.num_rows,
        state.null_request,
        state.width,
        BLOCK=_BLOCK,
        **_OPTIONS,
    )


@triton.jit
def _apply_updates(inbox, table, BLOCK: tl.constexpr):
    count = tl.load(inbox)
    start = tl.load(inbox + 2)
    for first in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        number = first + tl.arange(0, BLOCK)
        is_one = number < count
        offset = tl.load(inbox + start + number, mask=is_one, other=0)
        value = tl.load(inbox + start + count + number, mask=is_one, other=0)
        tl.store(table + offset, value, mask=is_one)


@triton.jit(do_not_specialize=["num_tokens", "width"])
def _begin_decode(
    inbox,
    decode_requests,
    table,
    token_ids,
    positions,
    token_requests,
    tile_starts,
    tile_lengths,
    row_tokens,
    row_requests,
    row_positions,
    num_tokens,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_tokens
    if tl.load(inbox + 1) != 0:
        request = tl.load(inbox + _HEADER + row, mask=is_row, other=0)
        tl.store(decode_requests + row, request, mask=is_row)
    else:
        request = tl.load(decode_requests + row, mask=is_row, other=0)
    known = table + request.to(tl.int64) * width
    position = tl.load(known + _NEXT_POSITION, mask=is_row, other=0)
    tl.store(token_ids + row, tl.load(known + _LAST_TOKEN, mask=is_row, other=0), mask=is_row)
    tl.store(positions + row, position, mask=is_row)
    tl.store(token_requests + row, request, mask=is_row)
    tl.store(tile_starts + row, row, mask=is_row)
    tl.store(tile_lengths + row, tl.full((BLOCK,), 1, tl.int32), mask=is_row)
    tl.store(row_tokens + row, row, mask=is_row)
    tl.store(row_requests + row, request, mask=is_row)
    tl.store(row_positions + row, position + 1, mask=is_row)


@triton.jit
def _take(source, target, number, count):
    is_one = number < count
    tl.store(target + number, tl.load(source + number, mask=is_one, other=0), mask=is_one)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles", "num_rows", "width"])
def _begin_step(
    inbox,
    table,
    token_ids,
    positions,
    token_requests,
    tile_starts,
    tile_lengths,
    row_tokens,
    row_requests,
    row_positions,
    num_tokens,
    num_tiles,
    num_rows,
    width,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = number < num_tokens
    source = inbox + _HEADER
    token = tl.load(source + number, mask=is_token, other=0)
    request = tl.load(source + 2 * num_tokens + number, mask=is_token, other=0)
    is_pending = is_token & (token == _PENDING)
    last = tl.load(table + request.to(tl.int64) * width + _LAST_TOKEN, mask=is_pending, other=0)
    tl.store(token_ids + number, tl.where(is_pending, last, token), mask=is_token)
    tl.store(token_requests + number, request, mask=is_token)
    _take(source + num_tokens, positions, number, num_tokens)
    source += 3 * num_tokens
    _take(source, tile_starts, number, num_tiles)
    _take(source + num_tiles, tile_lengths, number, num_tiles)
    source += 2 * num_tiles
    _take(source, row_tokens, number, num_rows)
    _take(source + num_rows, row_requests, number, num_rows)
    _take(source + 2 * num_rows, row_positions, number, num_rows)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "null_request", "width"])
def _end_step(
    inbox,
    table,
    results,
    faults,
    row_requests,
    row_positions,
    num_tokens,
    num_rows,
    null_request,
    width,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = number < num_rows
    request = tl.load(row_requests + number, mask=is_row, other=0)
    after = tl.load(row_requests + number + 1, mask=number + 1 < num_rows, other=-1)
    before = tl.load(row_requests + number - 1, mask=is_row & (number > 0), other=-1)
    is_only = is_row & (request != null_request) & (request != after) & (request != before)
    known = table + request.to(tl.int64) * width
    tl.store(known + _LAST_TOKEN, tl.load(results + number, mask=is_only, other=0), mask=is_only)
    tl.store(known + _NEXT_POSITION, tl.load(row_positions + number, mask=is_only, other=0), mask=is_only)
    is_token = number < num_tokens
    fault = tl.load(faults + number, mask=is_token, other=0)
    tl.store(results + num_rows + number, fault, mask=is_token)
    tl.store(faults + number, tl.zeros((BLOCK,), tl.int32), mask=is_token)
    if tl.program_id(0) == 0:
        tl.store(inbox, 0)
        tl.store(inbox + 1, 0)
