"""Log-softmax of rows: the chosen token's logprob and the likeliest tokens, without a sort.

Each program finds the highest logit, the sum and the likeliest tokens of its part of a row; one more merges
the parts in their order. Both the parts and the order depend on the vocabulary alone.
"""

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.sampling_variants import divisible_arguments
from engine.kernels.cuda.sampling_workspace import CHUNK, MAX_TOPS, SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.variants import Variant

PART_OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}
MERGE_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_NO_TOKEN: tl.constexpr = tl.constexpr(2147483647)
_MAX_TOPS: tl.constexpr = tl.constexpr(MAX_TOPS)


@triton.jit
def _likeliest(value, ids):
    """Return the highest value and the lowest id that has it."""
    highest = tl.max(value, 0)
    return highest, tl.min(tl.where(value == highest, ids, _NO_TOKEN), 0)


@triton.jit
def _finite(highest):
    """Return what may be taken off logits of which this is the highest: -inf less -inf is NaN."""
    return tl.where(highest > float("-inf"), highest, 0.0)


@triton.jit(do_not_specialize=["num_tops"])
def _top_of_parts(
    logits, logits_stride, highest, sums, top_values, top_ids, vocab_size, num_tops, CHUNK: tl.constexpr
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    is_token = tokens < vocab_size
    pointer = logits + row.to(tl.int64) * logits_stride
    x = tl.load(pointer + tokens, mask=is_token, other=float("-inf"))
    part = row * tl.num_programs(1) + chunk
    most = tl.max(x, 0)
    tl.store(highest + part, most)
    tl.store(sums + part, tl.sum(tl.exp(x - _finite(most)), 0))
    for rank in range(num_tops):
        value, token = _likeliest(x, tokens)
        tl.store(top_values + part * _MAX_TOPS + rank, value)
        tl.store(top_ids + part * _MAX_TOPS + rank, tl.where(value > float("-inf"), token, _NO_TOKEN))
        x = tl.where(tokens == token, float("-inf"), x)


@triton.jit(do_not_specialize=["num_parts", "num_tops"])
def _merge_parts(
    logits, logits_stride, results, highest, sums, top_values, top_ids, out_values, out_ids, out_chosen,
    num_parts, num_tops, NUM_PARTS: tl.constexpr, NUM_TOPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    parts = tl.arange(0, NUM_PARTS)
    is_part = parts < num_parts
    part_highest = tl.load(highest + row * num_parts + parts, mask=is_part, other=float("-inf"))
    part_sums = tl.load(sums + row * num_parts + parts, mask=is_part, other=0.0)
    most = tl.max(part_highest, 0)
    log_sum = tl.log(tl.sum(part_sums * tl.exp(part_highest - _finite(most)), 0))
    chosen = tl.load(logits + row.to(tl.int64) * logits_stride + tl.load(results + row))
    tl.store(out_chosen + row, (chosen - most) - log_sum)
    rank = tl.arange(0, NUM_TOPS)
    place = ((row * num_parts + parts) * _MAX_TOPS)[:, None] + rank[None, :]
    is_top = is_part[:, None] & (rank < num_tops)[None, :]
    value = tl.load(top_values + place, mask=is_top, other=float("-inf"))
    ids = tl.load(top_ids + place, mask=is_top, other=_NO_TOKEN)
    value, ids = tl.reshape(value, (NUM_PARTS * NUM_TOPS,)), tl.reshape(ids, (NUM_PARTS * NUM_TOPS,))
    for place in range(num_tops):
        best, token = _likeliest(value, ids)
        is_there = best > float("-inf")
        tl.store(out_values + row * num_tops + place, tl.where(is_there, (best - most) - log_sum, best))
        tl.store(out_ids + row * num_tops + place, tl.where(is_there, token, -1))
        value = tl.where(ids == token, float("-inf"), value)


def top_logprobs(
    logits: Tensor,
    buffers: StepBuffers,
    num_rows: int,
    tops: int,
    out_values: Tensor,
    out_ids: Tensor,
    out_chosen: Tensor,
    workspace: SamplingWorkspace,
) -> None:
    """Write logprobs of float32 logits [num_rows, >= workspace.vocab_size], raw ones, natural logarithms.

    out_chosen: float32 [>= num_rows], that of the token in buffers.results. out_values, out_ids: float32 and
    int32 [>= num_rows, tops], contiguous, the likeliest first, among equals the lowest token; -inf and -1
    where no more tokens can come. tops: 0 to 20.
    """
    assert 0 <= tops <= MAX_TOPS, tops
    vocab_size, num_parts = workspace.vocab_size, workspace.num_chunks
    found = (workspace.highest, workspace.sums, workspace.top_values, workspace.top_ids)
    _top_of_parts[(num_rows, num_parts)](
        logits, logits.stride(0), *found, vocab_size, tops, CHUNK=CHUNK, **PART_OPTIONS
    )
    _merge_parts[(num_rows,)](
        logits, logits.stride(0), buffers.results, *found, out_values, out_ids, out_chosen, num_parts, tops,
        NUM_PARTS=triton.next_power_of_2(num_parts), NUM_TOPS=triton.next_power_of_2(max(tops, 1)),
        **MERGE_OPTIONS,
    )  # fmt: skip


def variants(vocab_size: int, logits_stride: int, tops: Sequence[int]) -> Iterator[Variant]:
    """Yield what the server may launch for these numbers of likeliest tokens."""
    part = dict.fromkeys(("logits", "highest", "sums", "top_values"), "*fp32") | {"top_ids": "*i32"}
    merge = part | dict.fromkeys(("out_values", "out_chosen"), "*fp32")
    merge |= dict.fromkeys(("results", "out_ids"), "*i32")
    numbers = dict.fromkeys(("logits_stride", "num_tops"), "i32")
    signature = part | numbers | {"vocab_size": "i32"}
    sizes = {"logits_stride": logits_stride, "vocab_size": vocab_size}
    divisible = divisible_arguments(signature, **sizes)
    yield Variant(_top_of_parts, signature, {"CHUNK": CHUNK}, PART_OPTIONS, divisible)
    num_parts = triton.next_power_of_2(-(-vocab_size // CHUNK))
    for num_tops in sorted({triton.next_power_of_2(max(top, 1)) for top in tops}):
        constants = {"NUM_PARTS": num_parts, "NUM_TOPS": num_tops}
        signature = merge | numbers | {"num_parts": "i32"}
        divisible = divisible_arguments(signature, **sizes)
        yield Variant(_merge_parts, signature, constants, MERGE_OPTIONS, divisible)
