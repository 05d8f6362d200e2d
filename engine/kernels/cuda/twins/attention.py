"""Attention to the keys and values in blocks, in plain torch: a token at a time, in the kernel's order."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.cuda.attention_workspace import AttentionWorkspace
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape

_UNSEEN = -(2.0**100)


class _Partial(NamedTuple):
    """Keys summed up: maximum, sum [num_heads] and weighted values [num_heads, head_dim], float32."""

    maximum: Tensor
    total: Tensor
    outputs: Tensor


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    out: Tensor,
    shape: StepShape,
    workspace: AttentionWorkspace,
    *,
    scale: float,
    window: int | None = None,
    dependent: bool = False,  # noqa: ARG001 - only a launch can depend on another
) -> None:
    """Attend each query token of the tiles to its request's positions up to its own."""
    for tile in range(shape.num_tiles):
        start = int(buffers.tile_starts[tile])
        first = int(buffers.positions[start])
        request = int(buffers.token_requests[start])
        if request == state.null_request:  # nobody reads what padding computes
            out[start] = 0.0
            continue
        blocks = state.block_tables[request].long()
        for number in range(int(buffers.tile_lengths[tile])):
            position = first + number
            begin = 0 if window is None else max(position - window + 1, 0)
            partial = _attend_token(
                query[start + number], keys, values, blocks, range(begin, position + 1), workspace, scale
            )
            out[start + number] = (partial.outputs / partial.total[:, None]).flatten()


def _attend_token(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    seen: range,
    workspace: AttentionWorkspace,
    scale: float,
) -> _Partial:
    split, key_block = workspace.split, workspace.key_block
    score_scale = torch.tensor(scale * math.log2(math.e))
    merged = _nothing(query)
    for split_start in range(seen.start // split * split, seen.stop, split):
        partial = _nothing(query)
        start = max(split_start, seen.start // key_block * key_block)
        for key in range(start, min(split_start + split, seen.stop), key_block):
            places = torch.arange(key, key + key_block, device=query.device)
            is_seen = (places >= seen.start) & (places < seen.stop)
            k, v = (_gather(storage, blocks, places, is_seen) for storage in (keys, values))
            partial = _add_keys(partial, query, k, v, is_seen, score_scale)
        merged = _merge(merged, partial)
    return merged


def _nothing(query: Tensor) -> _Partial:
    total = torch.zeros(len(query), device=query.device)
    return _Partial(torch.full_like(total, _UNSEEN), total, torch.zeros_like(query, dtype=torch.float32))


def _gather(storage: Tensor, blocks: Tensor, places: Tensor, is_seen: Tensor) -> Tensor:
    """Return float64 [num_kv_heads, positions, head_dim], 0 where a place is not seen."""
    block_size = storage.shape[2]
    places = torch.where(is_seen, places, 0)
    found = storage[
        blocks[places // block_size], :, places % block_size
    ]  # [positions, num_kv_heads, head_dim]
    return found.masked_fill(~is_seen[:, None, None], 0.0).transpose(0, 1).double()


def _add_keys(
    partial: _Partial, query: Tensor, keys: Tensor, values: Tensor, is_seen: Tensor, score_scale: Tensor
) -> _Partial:
    """Add a block of keys (online softmax, arXiv 1805.02867), in powers of two."""
    grouped = query.double().view(len(keys), -1, query.shape[1])
    scores = (grouped @ keys.transpose(1, 2)).float().flatten(0, 1).masked_fill(~is_seen, _UNSEEN)
    maximum = torch.maximum(partial.maximum, scores.amax(dim=1) * score_scale)
    exponents = scores.double() * score_scale.double() - maximum[:, None].double()
    weights = torch.exp2(exponents.float()).masked_fill(~is_seen, 0.0)
    decay = torch.exp2(partial.maximum - maximum).double()
    total = partial.total.double() * decay + weights.double().sum(dim=1)
    rounded = weights.to(query.dtype).double().view(len(keys), -1, len(is_seen))
    outputs = partial.outputs.double() * decay[:, None] + (rounded @ values).flatten(0, 1)
    return _Partial(maximum, total.float(), outputs.float())


def _merge(before: _Partial, split: _Partial) -> _Partial:
    maximum = torch.maximum(before.maximum, split.maximum)
    decays = (torch.exp2(before.maximum - maximum), torch.exp2(split.maximum - maximum))
    total = before.total * decays[0] + split.total * decays[1]
    outputs = before.outputs * decays[0][:, None] + split.outputs * decays[1][:, None]
    return _Partial(maximum, total, outputs)
