"""What lies between a layer's first product and its attention, in one launch."""

from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.dtype_names import TRITON_NAMES
from engine.kernels.cuda.head_transform import HeadNorms, RotaryTables
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.variants import Variant

_PROGRAM_NUMBERS = 1024  # of a program's heads together; by head_dim alone, since it orders the norms' sums
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the same rounding from every compiler


@dataclass(frozen=True)
class _Plan:
    """The constants that the kernel is compiled for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_block: int  # head_dim with its padding
    head_rows: int  # heads of a program
    block_size: int
    has_rotary: bool
    has_norms: bool


def write_kv(
    qkv: Tensor,
    rotary: RotaryTables | None,
    head_norms: HeadNorms | None,
    buffers: StepBuffers,
    state: RequestState,
    keys: Tensor,
    values: Tensor,
    query_out: Tensor,
    num_tokens: int,
    num_heads: int,
    *,
    dependent: bool = False,
) -> None:
    """Normalise and rotate queries and keys, and store keys and values in the blocks of their requests.

    qkv T [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous; keys, values T [num_blocks + 1,
    num_kv_heads, block_size, head_dim]; query_out T [num_tokens, num_heads, head_dim]. Keys and values that
    are not finite are stored as 0, and buffers.faults of their token becomes 1. Tokens of the null request
    store zeros, whatever qkv has for them. `dependent`: as in embed().
    """
    num_kv_heads, block_size, head_dim = keys.shape[1:]
    heads = Heads(num_heads, num_kv_heads, head_dim, keys.dtype)
    plan = _plan(heads, block_size, rotary is not None, head_norms is not None)
    _write_kv[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, plan.head_rows))](
        qkv,
        rotary.cos if rotary else qkv,
        rotary.signed_sin if rotary else qkv,
        head_norms.query_weight if head_norms else qkv,
        head_norms.key_weight if head_norms else qkv,
        buffers.token_requests,
        buffers.positions,
        state.block_tables,
        keys,
        values,
        query_out,
        buffers.faults,
        head_norms.eps if head_norms else 0.0,
        state.null_request,
        state.width,
        plan=plan,
        PDL=dependent,
        **_OPTIONS,
        **({"launch_pdl": True} if dependent else {}),
    )


def variants(heads: Heads, *, block_size: int, has_rotary: bool, has_norms: bool) -> Iterator[Variant]:
    """Yield what write_kv() launches for a model."""
    number = f"*{TRITON_NAMES[heads.dtype]}"
    signature = {
        "qkv": number,
        "cos": "*fp32" if has_rotary else number,
        "signed_sin": "*fp32" if has_rotary else number,
        "query_weight": number,
        "key_weight": number,
        "token_requests": "*i32",
        "positions": "*i32",
        "block_tables": "*i32",
        "keys": number,
        "values": number,
        "query_out": number,
        "faults": "*i32",
        "eps": "fp32",
        "null_request": "i32",
        "table_width": "i32",
    }
    constants = {"plan": _plan(heads, block_size, has_rotary, has_norms), "PDL": False}
    divisible = frozenset(name for name, kind in signature.items() if kind.startswith("*"))
    yield Variant(_write_kv, signature, constants, _OPTIONS, divisible)


def _plan(heads: Heads, block_size: int, has_rotary: bool, has_norms: bool) -> _Plan:
    return _Plan(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        head_block=heads.head_block,
        head_rows=max(_PROGRAM_NUMBERS // heads.head_block, 1),
        block_size=block_size,
        has_rotary=has_rotary,
        has_norms=has_norms,
    )


@triton.jit(do_not_specialize=["null_request", "table_width"])
def _write_kv(
    qkv,
    cos,
    signed_sin,
    query_weight,
    key_weight,
    token_requests,
    positions,
    block_tables,
    keys,
    values,
    query_out,
    faults,
    eps,
    null_request,
    table_width,
    plan: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * plan.head_rows + tl.arange(0, plan.head_rows)[:, None]
    dim = tl.arange(0, plan.head_block)[None, :]
    request = tl.load(token_requests + token)
    position = tl.load(positions + token)
    is_stored = (head < plan.num_heads + 2 * plan.num_kv_heads) & (dim < plan.head_dim)
    num_loaded = tl.where(request == null_request, 0, plan.num_heads + 2 * plan.num_kv_heads)
    is_loaded = is_stored & (head < num_loaded)
    source = qkv + (token * (plan.num_heads + 2 * plan.num_kv_heads) + head) * plan.head_dim
    x = tl.load(source + dim, mask=is_loaded, other=0.0)
    turned = x
    if plan.has_norms:
        scale = _inverse_rms(x, eps, plan.head_dim)
        turned = _weigh(x, scale, query_weight, key_weight, head < plan.num_heads, dim, is_stored)
    if plan.has_rotary:
        pair = (dim + plan.head_dim // 2) % plan.head_dim  # the dimension that this one is rotated with
        y = tl.load(source + pair, mask=is_loaded, other=0.0)
        if plan.has_norms:
            y = _weigh(y, scale, query_weight, key_weight, head < plan.num_heads, pair, is_stored)
        angle = position.to(tl.int64) * plan.head_dim + dim
        turned = _rotate(turned, y, cos + angle, signed_sin + angle, dim < plan.head_dim)
    query = query_out + (token * plan.num_heads + head) * plan.head_dim + dim
    tl.store(query, turned, mask=is_stored & (head < plan.num_heads))
    block = tl.load(block_tables + request.to(tl.int64) * table_width + position // plan.block_size)
    _store_kv(keys, values, faults + token, x, turned, block, position, head, dim, is_stored, plan)


@triton.jit
def _store_kv(keys, values, fault, x, turned, block, position, head, dim, is_stored, plan: tl.constexpr):
    """Store the heads that are keys or values, 0 where they are not finite."""
    kv_head = head - plan.num_heads
    is_key = kv_head < plan.num_kv_heads
    is_kv = is_stored & (kv_head >= 0)
    new = tl.where(is_key, turned, x)
    is_finite = tl.abs(new.to(tl.float32)) < float("inf")
    tl.store(fault + 0 * (head + dim), 1, mask=is_kv & (is_finite == 0))
    new = tl.where(is_finite, new, 0.0).to(keys.dtype.element_ty)
    row = block.to(tl.int64) * plan.num_kv_heads + kv_head % plan.num_kv_heads  # the pool may pass 2**31
    place = (row * plan.block_size + position % plan.block_size) * plan.head_dim + dim
    tl.store(keys + place, new, mask=is_kv & is_key)
    tl.store(values + place, new, mask=is_kv & (is_key == 0))


@triton.jit
def _inverse_rms(x, eps, HEAD_DIM: tl.constexpr):
    wide = x.to(tl.float32)
    return tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / HEAD_DIM + eps)


@triton.jit
def _weigh(x, scale, query_weight, key_weight, is_query, dim, mask):
    """Multiply by the inverse of the root mean square, round, multiply by the weight, round."""
    weight = tl.load(query_weight + dim, mask=mask & is_query, other=0.0).to(tl.float32)
    weight += tl.load(key_weight + dim, mask=mask & (is_query == 0), other=0.0).to(tl.float32)
    normed = (x.to(tl.float32) * scale).to(x.dtype)
    return (normed.to(tl.float32) * weight).to(x.dtype)


@triton.jit
def _rotate(x, pair, cos, signed_sin, mask):
    c = tl.load(cos, mask=mask, other=0.0)
    s = tl.load(signed_sin, mask=mask, other=0.0)
    return (x.to(tl.float32) * c + pair.to(tl.float32) * s).to(x.dtype)
