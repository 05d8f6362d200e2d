"""How often each token came, in a table on the device: penalties then need nothing from the host in a step.

A row of the table, int32 [vocab_size], belongs to a request: bit 0 says that the token is in the prompt, the
bits above count it in the answer. A step's drafts count for the rows behind them, right or wrong.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.acceptance import rows_of_tile
from engine.kernels.cuda.request_state import (
    COUNT_ROW,
    FREQUENCY_PENALTY,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    RequestState,
)
from engine.kernels.cuda.row_source import state_float
from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.variants import Variant

OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_COUNT_ROW: tl.constexpr = tl.constexpr(COUNT_ROW)
_REPETITION: tl.constexpr = tl.constexpr(REPETITION_PENALTY)
_FREQUENCY: tl.constexpr = tl.constexpr(FREQUENCY_PENALTY)
_PRESENCE: tl.constexpr = tl.constexpr(PRESENCE_PENALTY)


@triton.jit
def _num_drafts_before(row, request, row_requests):
    """Return how many rows just before this one are of the same request."""
    count = 0
    while tl.load(row_requests + row - count - 1, mask=row > count, other=-1) == request:
        count += 1
    return count


@triton.jit
def penalised_by_counts(
    x, tokens, is_token, row, row_requests, row_tokens, token_ids, state, state_width, counts, counts_stride
):
    """Return logits after the penalties, and whether the row's request has a row of counts."""
    request = tl.load(row_requests + row)
    parameters = state + request.to(tl.int64) * state_width
    count_row = tl.load(parameters + _COUNT_ROW)
    if count_row >= 0:
        place = counts + count_row.to(tl.int64) * counts_stride
        found = tl.load(place + tokens, mask=is_token, other=0)
        num_drafts = _num_drafts_before(row, request, row_requests)
        for back in range(num_drafts):
            draft = tl.load(token_ids + tl.load(row_tokens + row - back))
            found += tl.where(tokens == draft, 2, 0)
        penalty = state_float(parameters, _REPETITION)
        repeated = tl.where(x > 0.0, tl.div_rn(x, penalty), x * penalty)
        x = tl.where(found != 0, repeated, x)
        times = found >> 1
        amount = times.to(tl.float32) * state_float(parameters, _FREQUENCY)
        x = tl.where(times > 0, x - (amount + state_float(parameters, _PRESENCE)), x)
    return x, count_row >= 0


@triton.jit(do_not_specialize=["state_width", "counts_stride", "num_rows"])
def _count_tokens(
    tile_starts, tile_lengths, token_requests, row_tokens, row_requests, results, num_accepted, state,
    state_width, counts, counts_stride, num_rows, MAX_ROWS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    rows = tl.arange(0, MAX_ROWS)
    request, is_own = rows_of_tile(
        tile, tile_starts, tile_lengths, token_requests, row_tokens, row_requests, rows, num_rows
    )
    count_row = tl.load(state + request.to(tl.int64) * state_width + _COUNT_ROW)
    if count_row >= 0:
        first = tl.min(tl.where(is_own, rows, MAX_ROWS), 0)
        is_new = is_own & (rows <= first + tl.load(num_accepted + tile))
        chosen = tl.load(results + rows, mask=is_new, other=0)
        tl.atomic_add(counts + count_row.to(tl.int64) * counts_stride + chosen, 2, mask=is_new, sem="relaxed")


def count_tokens(
    buffers: StepBuffers,
    state: RequestState,
    shape: StepShape,
    num_accepted: Tensor,
    counts: Tensor,
) -> None:
    """Add each tile's new tokens, as many drafts as accept_drafts() took and one more, to its row of counts.

    counts: int32 [max_counted, vocab_size]; a request without a count row adds none.
    """
    _count_tokens[(shape.num_tiles,)](
        buffers.tile_starts, buffers.tile_lengths, buffers.token_requests, buffers.row_tokens,
        buffers.row_requests, buffers.results, num_accepted, state.table, state.width,
        counts, counts.stride(0), shape.num_rows, MAX_ROWS=triton.next_power_of_2(buffers.max_rows),
        **OPTIONS,
    )  # fmt: skip


def token_counts(
    prompt_token_ids: Sequence[int], answer_counts: Mapping[int, int], vocab_size: int
) -> Tensor:
    """Return a request's row of the table, int32 [vocab_size] on the CPU."""
    row = torch.zeros(vocab_size, dtype=torch.int32)
    row[torch.tensor(list(answer_counts), dtype=torch.int64)] = torch.tensor(
        [2 * count for count in answer_counts.values()], dtype=torch.int32
    )
    row[torch.tensor(prompt_token_ids, dtype=torch.int64)] |= 1
    return row


def variants(num_rows: int) -> Iterator[Variant]:
    """Yield what the server may launch for a step of so many rows."""
    pointers = (
        *("tile_starts", "tile_lengths", "token_requests", "row_tokens", "row_requests"),
        *("results", "num_accepted", "state", "counts"),
    )
    signature = dict.fromkeys(pointers, "*i32")
    signature |= dict.fromkeys(("state_width", "counts_stride", "num_rows"), "i32")
    constants = {"MAX_ROWS": triton.next_power_of_2(num_rows)}
    yield Variant(_count_tokens, signature, constants, OPTIONS, divisible_arguments(signature))
