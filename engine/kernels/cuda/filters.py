"""Top-k, top-p, min-p and typical-p as thresholds, a program a row; rows that want none cost a glance.

The kept set is that of engine/sampling/logits_processors.py but for the rounding of shares, which are sums of
fixed-point numbers here: it depends on a row's values alone. Nothing is sorted and no logit is written.
"""

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.dependent_launch import wait_for_inputs
from engine.kernels.cuda.exact_math import LEAST_NORMAL, logarithm, share_of
from engine.kernels.cuda.request_state import MIN_P, TEMPERATURE, TOP_K, TOP_P, TYPICAL_P, RequestState
from engine.kernels.cuda.row_source import row_pointer, state_float
from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.sampling_workspace import THRESHOLD_COLUMNS, SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.threshold_search import (
    COUNT,
    NUCLEUS,
    TYPICAL,
    find_threshold,
    scaled_logits,
)
from engine.kernels.cuda.variants import Variant

BLOCK = 1024
NUM_PIVOTS = 4  # with more of them, or of BLOCK, registers spill
OPTIONS = {"num_warps": 16, "num_stages": 1, "enable_fp_fusion": False}

_TEMPERATURE: tl.constexpr = tl.constexpr(TEMPERATURE)
_TOP_K: tl.constexpr = tl.constexpr(TOP_K)
_TOP_P: tl.constexpr = tl.constexpr(TOP_P)
_MIN_P: tl.constexpr = tl.constexpr(MIN_P)
_TYPICAL_P: tl.constexpr = tl.constexpr(TYPICAL_P)
_COLUMNS: tl.constexpr = tl.constexpr(THRESHOLD_COLUMNS)
_LEAST_NORMAL: tl.constexpr = tl.constexpr(LEAST_NORMAL)
_MEAN_REACH: tl.constexpr = tl.constexpr(64.0)  # tokens farther away have no share


@triton.jit
def _highest_logit(pointer, vocab_size, temperature, BLOCK: tl.constexpr):
    """Return the highest scaled logit; inf where one of them is NaN or infinitely high."""
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        x = scaled_logits(pointer, start + tl.arange(0, BLOCK), vocab_size, temperature)
        highest = tl.maximum(highest, tl.where(x < float("inf"), x, float("inf")))
    return tl.max(highest, 0)


@triton.jit
def _total_share(pointer, vocab_size, temperature, highest, least, BLOCK: tl.constexpr):
    """Return the shares of all tokens from `least` up, and the shares times the distance from the highest."""
    shares = tl.zeros((BLOCK,), dtype=tl.int64)
    distances = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(0, vocab_size, BLOCK):
        x = scaled_logits(pointer, start + tl.arange(0, BLOCK), vocab_size, temperature)
        share = tl.where(x >= least, share_of(highest - x), 0)
        shares += share
        distances += (share.to(tl.float32) * tl.minimum(highest - x, _MEAN_REACH)).to(tl.int64)
    return tl.sum(shares, 0), tl.sum(distances, 0)


@triton.jit
def _needed(part, total):
    """Return the least integer that is at least `part`, float32, of a sum of shares."""
    exact = part.to(tl.float64) * total.to(tl.float64)
    whole = exact.to(tl.int64)
    return tl.maximum(whole + (whole.to(tl.float64) < exact).to(tl.int64), 1)


@triton.jit(do_not_specialize=["state_width"])
def _find_thresholds(
    logits, logits_stride, adjusted, adjusted_stride, is_adjusted, row_requests, state, state_width,
    thresholds, candidates, vocab_size,
    HAS_ADJUSTED: tl.constexpr, NUM_PIVOTS: tl.constexpr, NUM_CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    request = state + tl.load(row_requests + row).to(tl.int64) * state_width
    temperature = state_float(request, _TEMPERATURE)
    top_k = tl.load(request + _TOP_K)
    top_p = state_float(request, _TOP_P)
    min_p = state_float(request, _MIN_P)
    typical_p = state_float(request, _TYPICAL_P)
    limits_k = (top_k > 0) & (top_k < vocab_size)
    least, highest, mean, limit = float("-inf"), 0.0, 0.0, float("inf")
    if (temperature > 0.0) & (limits_k | (top_p < 1.0) | (min_p > 0.0) | (typical_p < 1.0)):
        pointer = row_pointer(
            logits, logits_stride, adjusted, adjusted_stride, is_adjusted, row, HAS_ADJUSTED
        )
        highest = _highest_logit(pointer, vocab_size, temperature, BLOCK)
        if (highest > float("-inf")) & (highest < float("inf")):
            place = candidates + row.to(tl.int64) * NUM_CANDIDATES
            if limits_k:
                least = find_threshold(
                    pointer, vocab_size, temperature, highest, least, mean, top_k.to(tl.int64), place,
                    COUNT, NUM_PIVOTS, NUM_CANDIDATES, BLOCK,
                )  # fmt: skip
            if top_p < 1.0:
                total, _ = _total_share(pointer, vocab_size, temperature, highest, least, BLOCK)
                least = find_threshold(
                    pointer, vocab_size, temperature, highest, least, mean, _needed(top_p, total), place,
                    NUCLEUS, NUM_PIVOTS, NUM_CANDIDATES, BLOCK,
                )  # fmt: skip
            if min_p > 0.0:
                least = tl.maximum(least, highest + logarithm(tl.maximum(min_p, _LEAST_NORMAL)))
            if typical_p < 1.0:
                total, distances = _total_share(pointer, vocab_size, temperature, highest, least, BLOCK)
                mean = (distances.to(tl.float64) / total.to(tl.float64)).to(tl.float32)
                limit = -find_threshold(
                    pointer, vocab_size, temperature, highest, least, mean, _needed(typical_p, total), place,
                    TYPICAL, NUM_PIVOTS, NUM_CANDIDATES, BLOCK,
                )  # fmt: skip
        else:
            highest = 0.0
    tl.store(thresholds + row * _COLUMNS, least)
    tl.store(thresholds + row * _COLUMNS + 1, highest)
    tl.store(thresholds + row * _COLUMNS + 2, mean)
    tl.store(thresholds + row * _COLUMNS + 3, limit)


def find_thresholds(
    logits: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    adjusted: Tensor | None = None,
    dependent: bool = False,
) -> None:
    """Write workspace.thresholds of float32 logits [num_rows, >= vocab_size] for their requests' filters.

    adjusted: where workspace.is_adjusted says so, its row is read instead. A row with a broken logit keeps
    everything.
    """
    source = logits if adjusted is None else adjusted
    _find_thresholds[(num_rows,)](
        logits, logits.stride(0), source, source.stride(0), workspace.is_adjusted,
        buffers.row_requests, state.table, state.width,
        workspace.thresholds, workspace.candidates, vocab_size,
        HAS_ADJUSTED=adjusted is not None, NUM_PIVOTS=NUM_PIVOTS, NUM_CANDIDATES=workspace.num_candidates,
        BLOCK=BLOCK, PDL=dependent, launch_pdl=dependent, **OPTIONS,
    )  # fmt: skip


def variants(
    vocab_size: int, logits_stride: int, *, num_candidates: int = 2048, dependent: Sequence[bool] = (False,)
) -> Iterator[Variant]:
    """Yield what the server may launch; logits_stride: numbers from one row of logits to the next."""
    signature = {
        "logits": "*fp32",
        "logits_stride": "i32",
        "adjusted": "*fp32",
        "adjusted_stride": "i32",
        "is_adjusted": "*i32",
        "row_requests": "*i32",
        "state": "*i32",
        "state_width": "i32",
        "thresholds": "*fp32",
        "candidates": "*fp32",
        "vocab_size": "i32",
    }
    divisible = divisible_arguments(
        signature, logits_stride=logits_stride, adjusted_stride=logits_stride, vocab_size=vocab_size
    )
    for has_adjusted in (False, True):
        for pdl in dependent:
            constants = {
                "HAS_ADJUSTED": has_adjusted,
                "NUM_PIVOTS": NUM_PIVOTS,
                "NUM_CANDIDATES": num_candidates,
                "BLOCK": BLOCK,
                "PDL": pdl,
            }
            yield Variant(_find_thresholds, signature, constants, OPTIONS | {"launch_pdl": pdl}, divisible)
