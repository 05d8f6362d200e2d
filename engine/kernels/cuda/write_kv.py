"""What lies between a layer's first product and its attention, in one launch."""

from collections.abc import Iterator

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
_NUM_WARPS = 4


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
    head_block, head_rows = _block(head_dim)
    _write_kv[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, head_rows))](
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
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HEAD_BLOCK=head_block,
        HEAD_ROWS=head_rows,
        BLOCK_SIZE=block_size,
        HAS_ROTARY=rotary is not None,
        HAS_NORMS=head_norms is not None,
        PDL=dependent,
        num_warps=_NUM_WARPS,
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
    head_block, head_rows = _block(heads.head_dim)
    constants = {
        "NUM_HEADS": heads.num_heads,
        "NUM_KV_HEADS": heads.num_kv_heads,
        "HEAD_DIM": heads.head_dim,
        "HEAD_BLOCK": head_block,
        "HEAD_ROWS": head_rows,
        "BLOCK_SIZE": block_size,
        "HAS_ROTARY": has_rotary,
        "HAS_NORMS": has_norms,
        "PDL": False,
    }
    divisible = frozenset(name for name, kind in signature.items() if kind.startswith("*"))
    yield Variant(_write_kv, signature, constants, {"num_warps": _NUM_WARPS}, divisible)


def _block(head_dim: int) -> tuple[int, int]:
    """Return how many numbers of a head, padding included, and how many heads a program has."""
    head_block = int(triton.next_power_of_2(head_dim))
    return head_block, max(_PROGRAM_NUMBERS // head_block, 1)


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
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_ROWS + tl.arange(0, HEAD_ROWS)[:, None]
    dim = tl.arange(0, HEAD_BLOCK)[None, :]
    request = tl.load(token_requests + token)
    position = tl.load(positions + token)
    is_stored = (head < NUM_HEADS + 2 * NUM_KV_HEADS) & (dim < HEAD_DIM)
    num_loaded = tl.where(request == null_request, 0, NUM_HEADS + 2 * NUM_KV_HEADS)
    is_loaded = is_stored & (head < num_loaded)
    source = qkv + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * HEAD_DIM
    x = tl.load(source + dim, mask=is_loaded, other=0.0)
    turned = x
    if HAS_NORMS:
        scale = _inverse_rms(x, eps, HEAD_DIM)
        turned = _weigh(x, scale, query_weight, key_weight, head < NUM_HEADS, dim, is_stored)
    if HAS_ROTARY:
        pair = (dim + HEAD_DIM // 2) % HEAD_DIM  # the dimension that this one is rotated with
        y = tl.load(source + pair, mask=is_loaded, other=0.0)
        if HAS_NORMS:
            y = _weigh(y, scale, query_weight, key_weight, head < NUM_HEADS, pair, is_stored)
        angle = position.to(tl.int64) * HEAD_DIM + dim
        turned = _rotate(turned, y, cos + angle, signed_sin + angle, dim < HEAD_DIM)
    query = query_out + (token * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(query, turned, mask=is_stored & (head < NUM_HEADS))
    kv_head = head - NUM_HEADS
    new = tl.where(kv_head < NUM_KV_HEADS, turned, x)
    is_kv = is_stored & (kv_head >= 0)
    is_finite = tl.abs(new.to(tl.float32)) < float("inf")
    tl.store(faults + token + 0 * (head + dim), 1, mask=is_kv & (is_finite == 0))
    new = tl.where(is_finite, new, 0.0).to(keys.dtype.element_ty)
    block = tl.load(block_tables + request.to(tl.int64) * table_width + position // BLOCK_SIZE).to(tl.int64)
    place = (block * NUM_KV_HEADS + kv_head % NUM_KV_HEADS) * BLOCK_SIZE + position % BLOCK_SIZE
    _store_either(kv_head < NUM_KV_HEADS, keys, values, place * HEAD_DIM + dim, new, is_kv)


@triton.jit
def _store_either(is_key, keys, values, place, new, mask):
    tl.store(keys + place, new, mask=mask & is_key)
    tl.store(values + place, new, mask=mask & (is_key == 0))


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
