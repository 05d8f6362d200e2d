"""From logits to tokens: the filters' thresholds, then argmax of logit plus noise over programs and rows.

A greedy row or one with nothing but a temperature costs one pass over its logits, split over programs, and a
small kernel that merges what they found. Among equals the lowest token wins.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.dependent_launch import wait_for_inputs
from engine.kernels.cuda.filters import find_thresholds
from engine.kernels.cuda.noise import gumbel, noise_bits, position_key
from engine.kernels.cuda.request_state import NOISE_HIGH, NOISE_LOW, TEMPERATURE, RequestState
from engine.kernels.cuda.row_source import row_pointer, state_float
from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.sampling_workspace import CHUNK, THRESHOLD_COLUMNS, SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.threshold_search import surprise_distance
from engine.kernels.cuda.variants import Variant

BEST_OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}
MERGE_OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}

_TEMPERATURE: tl.constexpr = tl.constexpr(TEMPERATURE)
_NOISE_LOW: tl.constexpr = tl.constexpr(NOISE_LOW)
_NOISE_HIGH: tl.constexpr = tl.constexpr(NOISE_HIGH)
_COLUMNS: tl.constexpr = tl.constexpr(THRESHOLD_COLUMNS)
_NO_TOKEN: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def _noisy(x, tokens, request, position, temperature, thresholds, HAS_FILTERS: tl.constexpr):
    """Return scaled logits with noise, -inf for those that a filter removed."""
    scaled = tl.div_rn(x, temperature)
    low, high = position_key(tl.load(request + _NOISE_LOW), tl.load(request + _NOISE_HIGH), position)
    sums = scaled + gumbel(noise_bits(tokens, low, high))
    if HAS_FILTERS:
        distance = surprise_distance(scaled, tl.load(thresholds + 1), tl.load(thresholds + 2))
        is_kept = (scaled >= tl.load(thresholds)) & (distance <= tl.load(thresholds + 3))
        sums = tl.where(is_kept, sums, float("-inf"))
    return sums


@triton.jit(do_not_specialize=["state_width"])
def _best_of_chunks(
    logits, logits_stride, adjusted, adjusted_stride, is_adjusted, row_requests, row_positions, state,
    state_width, thresholds, best, best_ids, vocab_size,
    HAS_ADJUSTED: tl.constexpr, HAS_FILTERS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    is_token = tokens < vocab_size
    pointer = row_pointer(logits, logits_stride, adjusted, adjusted_stride, is_adjusted, row, HAS_ADJUSTED)
    x = tl.load(pointer + tokens, mask=is_token, other=float("-inf"))
    is_broken = tl.max(tl.where(x < float("inf"), 0, 1), 0) > 0
    if HAS_ADJUSTED:  # a broken logit may have been banned meanwhile
        raw = tl.load(logits + row.to(tl.int64) * logits_stride + tokens, mask=is_token, other=float("-inf"))
        is_broken = is_broken | (tl.max(tl.where(raw < float("inf"), 0, 1), 0) > 0)
    request = state + tl.load(row_requests + row).to(tl.int64) * state_width
    temperature = state_float(request, _TEMPERATURE)
    if (temperature > 0.0) & (is_broken == 0):
        position = tl.load(row_positions + row)
        place = thresholds + row * _COLUMNS
        x = _noisy(x, tokens, request, position, temperature, place, HAS_FILTERS)
    highest = tl.max(x, 0)
    token = tl.min(tl.where(is_token & (x == highest), tokens, _NO_TOKEN), 0)
    place = row * tl.num_programs(1) + chunk
    tl.store(best + place, highest)
    tl.store(best_ids + place, tl.where(is_broken, -1, token))


@triton.jit(do_not_specialize=["null_request", "num_chunks"])
def _merge_chunks(
    best, best_ids, row_requests, row_tokens, null_request, faults, results, num_chunks,
    NUM_CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    chunks = tl.arange(0, NUM_CHUNKS)
    is_chunk = chunks < num_chunks
    value = tl.load(best + row * num_chunks + chunks, mask=is_chunk, other=float("-inf"))
    ids = tl.load(best_ids + row * num_chunks + chunks, mask=is_chunk, other=_NO_TOKEN)
    is_broken = tl.min(ids, 0) < 0
    highest = tl.max(tl.where(ids < 0, float("-inf"), value), 0)
    token = tl.min(tl.where((value == highest) & (ids >= 0), ids, _NO_TOKEN), 0)
    tl.store(results + row, tl.where(is_broken, 0, token))
    # Padding rows share the place of a real token: whatever they hold, they report no fault.
    if is_broken & (tl.load(row_requests + row) != null_request):
        tl.store(faults + tl.load(row_tokens + row), 1)


def choose(
    logits: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    adjusted: Tensor | None = None,
    has_filters: bool = True,
    dependent: bool = False,
) -> None:
    """Write each row's token to buffers.results, from float32 logits [num_rows, >= vocab_size].

    Logits beyond vocab_size never win. A row with one that is NaN or infinitely high sets the fault of its
    token; what it chooses is token 0. adjusted: as logits, read instead where workspace.is_adjusted says so.
    has_filters: False where no row has one but the temperature, which saves a launch. dependent: launched
    programmatically, for capability 9.0 on.
    """
    if has_filters:
        find_thresholds(
            logits, buffers, state, vocab_size, num_rows, workspace, adjusted=adjusted, dependent=dependent
        )
    source = logits if adjusted is None else adjusted
    num_chunks = -(-vocab_size // CHUNK)
    _best_of_chunks[(num_rows, num_chunks)](
        logits, logits.stride(0), source, source.stride(0), workspace.is_adjusted,
        buffers.row_requests, buffers.row_positions, state.table, state.width,
        workspace.thresholds, workspace.best, workspace.best_ids, vocab_size,
        HAS_ADJUSTED=adjusted is not None, HAS_FILTERS=has_filters, CHUNK=CHUNK,
        PDL=dependent, launch_pdl=dependent, **BEST_OPTIONS,
    )  # fmt: skip
    _merge_chunks[(num_rows,)](
        workspace.best, workspace.best_ids, buffers.row_requests, buffers.row_tokens, state.null_request,
        buffers.faults, buffers.results, num_chunks,
        NUM_CHUNKS=triton.next_power_of_2(num_chunks), PDL=dependent, launch_pdl=dependent, **MERGE_OPTIONS,
    )  # fmt: skip


def variants(
    vocab_size: int, logits_stride: int, *, dependent: Sequence[bool] = (False,)
) -> Iterator[Variant]:
    """Yield what the server may launch, without the filters' kernel.

    logits_stride: numbers from one row of logits to the next, and from one adjusted row to the next.
    """
    best = {
        "logits": "*fp32",
        "logits_stride": "i32",
        "adjusted": "*fp32",
        "adjusted_stride": "i32",
        "is_adjusted": "*i32",
        "row_requests": "*i32",
        "row_positions": "*i32",
        "state": "*i32",
        "state_width": "i32",
        "thresholds": "*fp32",
        "best": "*fp32",
        "best_ids": "*i32",
        "vocab_size": "i32",
    }
    merge = {
        "best": "*fp32",
        "best_ids": "*i32",
        "row_requests": "*i32",
        "row_tokens": "*i32",
        "null_request": "i32",
        "faults": "*i32",
        "results": "*i32",
        "num_chunks": "i32",
    }
    num_chunks = triton.next_power_of_2(-(-vocab_size // CHUNK))
    divisible = divisible_arguments(
        best, logits_stride=logits_stride, adjusted_stride=logits_stride, vocab_size=vocab_size
    )
    for pdl in dependent:
        launch = {"launch_pdl": pdl}
        for has_adjusted, has_filters in product((False, True), repeat=2):
            constants = {"HAS_ADJUSTED": has_adjusted, "HAS_FILTERS": has_filters, "CHUNK": CHUNK, "PDL": pdl}
            yield Variant(_best_of_chunks, best, constants, BEST_OPTIONS | launch, divisible)
        constants = {"NUM_CHUNKS": num_chunks, "PDL": pdl}
        yield Variant(_merge_chunks, merge, constants, MERGE_OPTIONS | launch, divisible_arguments(merge))
