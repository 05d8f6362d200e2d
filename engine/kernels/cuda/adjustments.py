"""Penalties, bias, bans and grammar on the device: rows as engine/sampling/row_processors.py leaves them.

Each program writes a part of an adjusted row, whose lists reach other parts too: every program reads them all
and takes what is its own. Between one list and the next a barrier, since threads read what others wrote.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda import packed_adjustments as packing
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.row_source import state_float
from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.sampling_workspace import CHUNK, SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.token_counts import penalised_by_counts
from engine.kernels.cuda.variants import Variant

OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}
LIST_BLOCK = 1024

_ROW: tl.constexpr = tl.constexpr(packing.ROW)
_ENTRY_WORDS: tl.constexpr = tl.constexpr(packing.ENTRY_WORDS)
_REPETITION: tl.constexpr = tl.constexpr(packing.REPETITION)
_FREQUENCY: tl.constexpr = tl.constexpr(packing.FREQUENCY)
_PRESENCE: tl.constexpr = tl.constexpr(packing.PRESENCE)
_SEEN: tl.constexpr = tl.constexpr(packing.SEEN)
_COUNTED: tl.constexpr = tl.constexpr(packing.COUNTED)
_BIASED: tl.constexpr = tl.constexpr(packing.BIASED)
_BANNED: tl.constexpr = tl.constexpr(packing.BANNED)
_ALLOWED: tl.constexpr = tl.constexpr(packing.ALLOWED)
_GRAMMAR: tl.constexpr = tl.constexpr(packing.GRAMMAR)
_HAS_BANS: tl.constexpr = tl.constexpr(packing.HAS_BANS)


@triton.jit
def _find_entry(packed, row, MAX_ROWS: tl.constexpr):
    """Return whether the row has an entry, and its address (of the first entry, if not)."""
    numbers = tl.arange(0, MAX_ROWS)
    is_entry = numbers < tl.load(packed)
    rows = tl.load(packed + 1 + numbers * _ENTRY_WORDS + _ROW, mask=is_entry, other=-1)
    entry = tl.max(tl.where(is_entry & (rows == row), numbers, -1), 0)
    return entry >= 0, packed + 1 + tl.maximum(entry, 0) * _ENTRY_WORDS


@triton.jit
def _is_set(packed, entry, tokens, FIELD: tl.constexpr):
    """Return the bits of tokens in a mask; what it does not reach is 0."""
    word = tokens >> 5
    is_reached = word < tl.load(entry + FIELD + 1)
    words = tl.load(packed + tl.load(entry + FIELD) + word, mask=is_reached, other=0)
    return ((words >> (tokens & 31)) & 1) != 0


@triton.jit
def _changed(value, packed, second, entry, FIELD: tl.constexpr):
    """Return logits after one of the lists; second: where what belongs to the ids lies."""
    changed = value
    if FIELD == _SEEN:
        penalty = state_float(entry, _REPETITION)
        changed = tl.where(value > 0.0, tl.div_rn(value, penalty), value * penalty)
    if FIELD == _COUNTED:
        amount = tl.load(packed + second).to(tl.float32) * state_float(entry, _FREQUENCY)
        changed = value - (amount + state_float(entry, _PRESENCE))
    if FIELD == _BIASED:
        changed = value + tl.load(packed + second).to(tl.float32, bitcast=True)
    if FIELD == _BANNED:
        changed = tl.full(value.shape, float("-inf"), tl.float32)
    return changed


@triton.jit
def _apply_list(adjusted_row, packed, entry, start, end, FIELD: tl.constexpr, LIST_BLOCK: tl.constexpr):
    """Change the logits of a list's tokens from `start` to `end`; each is listed once."""
    offset, length = tl.load(entry + FIELD), tl.load(entry + FIELD + 1)
    for first in range(0, length, LIST_BLOCK):
        numbers = first + tl.arange(0, LIST_BLOCK)
        ids = tl.load(packed + offset + numbers, mask=numbers < length, other=-1)
        is_mine = (ids >= start) & (ids < end)
        value = tl.load(adjusted_row + ids, mask=is_mine, other=0.0)
        second = offset + tl.where(is_mine, length + numbers, 0)  # no address beyond the list
        tl.store(adjusted_row + ids, _changed(value, packed, second, entry, FIELD), mask=is_mine)
    tl.debug_barrier()


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _adjust_entry(
    row_start, packed, entry, tokens, is_token, start, end, has_token, LIST_BLOCK: tl.constexpr
):
    """Apply an entry's lists and masks to a part of its row."""
    _apply_list(row_start, packed, entry, start, end, _SEEN, LIST_BLOCK)
    _apply_list(row_start, packed, entry, start, end, _COUNTED, LIST_BLOCK)
    _apply_list(row_start, packed, entry, start, end, _BIASED, LIST_BLOCK)
    _apply_list(row_start, packed, entry, start, end, _BANNED, LIST_BLOCK)
    x = tl.load(row_start + tokens, mask=is_token, other=float("-inf"))
    if tl.load(entry + _ALLOWED + 1) >= 0:
        x = tl.where(_is_set(packed, entry, tokens, _ALLOWED), x, float("-inf"))
    if tl.load(entry + _GRAMMAR + 1) >= 0:
        is_right = _is_set(packed, entry, tokens, _GRAMMAR)
        tl.store(has_token, tl.max((is_right & _is_finite(x)).to(tl.int32), 0))
        if tl.load(entry + _HAS_BANS) == 0:
            x = tl.where(is_right, x, float("-inf"))
    tl.store(row_start + tokens, x, mask=is_token)


@triton.jit(do_not_specialize=["state_width", "counts_stride"])
def _adjust_chunks(
    logits, logits_stride, adjusted, adjusted_stride, packed, is_adjusted, chunk_has_token,
    row_requests, row_tokens, token_ids, state, state_width, counts, counts_stride, vocab_size,
    HAS_COUNTS: tl.constexpr, MAX_ROWS: tl.constexpr, LIST_BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0), tl.program_id(1)
    has_entry, entry = _find_entry(packed, row, MAX_ROWS)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    is_token = tokens < vocab_size
    x = tl.load(logits + row.to(tl.int64) * logits_stride + tokens, mask=is_token, other=float("-inf"))
    is_counted = False
    if HAS_COUNTS:
        x, is_counted = penalised_by_counts(
            x, tokens, is_token, row, row_requests, row_tokens, token_ids, state, state_width, counts,
            counts_stride,
        )  # fmt: skip
    if chunk == 0:
        tl.store(is_adjusted + row, (has_entry | is_counted).to(tl.int32))
    row_start = adjusted + row.to(tl.int64) * adjusted_stride
    if has_entry | is_counted:
        tl.store(row_start + tokens, x, mask=is_token)
    if has_entry:
        tl.debug_barrier()
        _adjust_entry(
            row_start, packed, entry, tokens, is_token, chunk * CHUNK,
            tl.minimum(chunk * CHUNK + CHUNK, vocab_size),
            chunk_has_token + row * tl.num_programs(1) + chunk, LIST_BLOCK,
        )  # fmt: skip


@triton.jit
def _apply_grammar(
    adjusted, adjusted_stride, packed, chunk_has_token, vocab_size,
    MAX_ROWS: tl.constexpr, NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Apply the grammar to rows with bans, now that it is known whether both leave anything."""
    row, chunk, num_chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    has_entry, entry = _find_entry(packed, row, MAX_ROWS)
    if has_entry:
        if (tl.load(entry + _GRAMMAR + 1) >= 0) & (tl.load(entry + _HAS_BANS) != 0):
            chunks = tl.arange(0, NUM_CHUNKS)
            flags = tl.load(chunk_has_token + row * num_chunks + chunks, mask=chunks < num_chunks, other=0)
            tokens = chunk * CHUNK + tl.arange(0, CHUNK)
            pointers = adjusted + row.to(tl.int64) * adjusted_stride + tokens
            x = tl.load(pointers, mask=tokens < vocab_size, other=float("-inf"))
            if tl.max(flags, 0) == 0:
                x = tl.where(_is_finite(x), x, 0.0)
            x = tl.where(_is_set(packed, entry, tokens, _GRAMMAR), x, float("-inf"))
            tl.store(pointers, x, mask=tokens < vocab_size)


def adjust(
    logits: Tensor,
    adjusted: Tensor,
    packed: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    counts: Tensor | None = None,
) -> None:
    """Write rows that something changes to `adjusted` and 1 to their workspace.is_adjusted, 0 to the others'.

    logits, adjusted: float32 [>= num_rows, >= vocab_size]; the former stay as they are. packed: int32, what
    pack_adjustments() returned, for at most num_rows rows, and anything behind it. counts: int32
    [max_counted, vocab_size] of engine/kernels/cuda/token_counts.py, whose penalties come first: an entry of
    a request with a count row lists no tokens for penalties.
    """
    num_chunks, max_rows = -(-vocab_size // CHUNK), triton.next_power_of_2(workspace.max_rows)
    table = packed if counts is None else counts
    _adjust_chunks[(num_rows, num_chunks)](
        logits, logits.stride(0), adjusted, adjusted.stride(0), packed, workspace.is_adjusted,
        workspace.chunk_has_token, buffers.row_requests, buffers.row_tokens, buffers.token_ids,
        state.table, state.width, table, table.stride(0), vocab_size,
        HAS_COUNTS=counts is not None, MAX_ROWS=max_rows, LIST_BLOCK=LIST_BLOCK, CHUNK=CHUNK, **OPTIONS,
    )  # fmt: skip
    _apply_grammar[(num_rows, num_chunks)](
        adjusted, adjusted.stride(0), packed, workspace.chunk_has_token, vocab_size,
        MAX_ROWS=max_rows, NUM_CHUNKS=triton.next_power_of_2(num_chunks), CHUNK=CHUNK, **OPTIONS,
    )  # fmt: skip


def variants(vocab_size: int, logits_stride: int, num_rows: int) -> Iterator[Variant]:
    """Yield what the server may launch for a number of rows; adjusted ones are as far apart as logits."""
    grammar = {
        "adjusted": "*fp32",
        "adjusted_stride": "i32",
        "packed": "*i32",
        "chunk_has_token": "*i32",
        "vocab_size": "i32",
    }
    names = ("is_adjusted", "row_requests", "row_tokens", "token_ids", "state", "counts")
    chunks = grammar | {"logits": "*fp32"} | dict.fromkeys(names, "*i32")
    chunks |= dict.fromkeys(("logits_stride", "state_width", "counts_stride"), "i32")
    strides = {"logits_stride": logits_stride, "adjusted_stride": logits_stride, "vocab_size": vocab_size}
    sizes = {"MAX_ROWS": triton.next_power_of_2(num_rows), "CHUNK": CHUNK}
    for has_counts in (False, True):
        constants = sizes | {"HAS_COUNTS": has_counts, "LIST_BLOCK": LIST_BLOCK}
        yield Variant(_adjust_chunks, chunks, constants, OPTIONS, divisible_arguments(chunks, **strides))
    constants = sizes | {"NUM_CHUNKS": triton.next_power_of_2(-(-vocab_size // CHUNK))}
    yield Variant(_apply_grammar, grammar, constants, OPTIONS, divisible_arguments(grammar, **strides))
