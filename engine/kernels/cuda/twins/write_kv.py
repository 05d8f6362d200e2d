"""What lies between a layer's first product and its attention, in plain torch."""

import torch
from torch import Tensor

from engine.kernels.cuda.head_transform import HeadNorms, RotaryTables
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers


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
    dependent: bool = False,  # noqa: ARG001 - only a launch can depend on another
) -> None:
    """Normalise and rotate queries and keys, and store keys and values in the blocks of their requests."""
    _, num_kv_heads, block_size, head_dim = keys.shape
    requests = buffers.token_requests[:num_tokens].long()
    positions = buffers.positions[:num_tokens].long()
    heads = qkv[:num_tokens].view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    heads = heads.masked_fill((requests == state.null_request)[:, None, None], 0.0)
    query, key, value = heads[:, :num_heads], heads[:, num_heads:-num_kv_heads], heads[:, -num_kv_heads:]
    if head_norms is not None:
        query = _normalise(query, head_norms.query_weight, head_norms.eps)
        key = _normalise(key, head_norms.key_weight, head_norms.eps)
    if rotary is not None:
        query, key = (_rotate(x, rotary, positions) for x in (query, key))
    query_out[:num_tokens] = query
    blocks = state.block_tables[requests, positions // block_size].long()
    for storage, new in ((keys, key), (values, value)):
        storage[blocks, :, positions % block_size] = new.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        buffers.faults[:num_tokens] |= ~torch.isfinite(new).flatten(1).all(dim=1)


def _normalise(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = heads.double()
    normed = (wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).to(heads.dtype)
    return (normed.double() * weight.double()).to(heads.dtype)


def _rotate(heads: Tensor, rotary: RotaryTables, positions: Tensor) -> Tensor:
    cos, sin = (table[positions].unsqueeze(1).double() for table in (rotary.cos, rotary.signed_sin))
    wide = heads.double()
    return (wide * cos + wide.roll(wide.shape[-1] // 2, dims=-1) * sin).to(heads.dtype)
