"""Attention over the paged KV cache: ragged, causal, grouped-query, and independent of the batch.

The work is cut into (tile, chunk) pairs (engine/attention_tiles.py). Each pair yields a partial softmax;
the partials of a tile are merged in ascending chunk order. A row's bits are therefore the same alone or
among others, decoded or in a prompt chunk. (Partial softmax and merge: arXiv 2205.14135.)
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from engine.attention_tiles import CHUNK, TileGroup
from engine.kv_cache.kv_storage import LayerKV

# Matmul kernels for fewer rows than this sum in another order (MKL, float32): pad up to it. A single
# matrix goes through other kernels than a batch of them, which need more.
_MIN_ROWS = 4
_MIN_ROWS_OF_ONE_MATRIX = 16


def paged_attention(query: Tensor, layer_kv: LayerKV, groups: Sequence[TileGroup], *, scale: float) -> Tensor:
    """Attend each query [num_tokens, num_heads, head_dim] to its request's keys up to its own position.

    Returns [num_tokens, num_heads * head_dim]. Every token must be in one of the groups.
    """
    output = torch.empty_like(query)
    for group in groups:
        _attend(query, layer_kv, group, scale, output)
    return output.flatten(1)


def _attend(query: Tensor, layer_kv: LayerKV, group: TileGroup, scale: float, output: Tensor) -> None:
    num_kv_heads, _, _, head_dim = layer_kv.keys.shape
    num_tiles, width = group.rows.shape
    num_pairs = len(group.pair_tiles)
    heads_per_kv = query.shape[1] // num_kv_heads
    min_rows = _MIN_ROWS if num_kv_heads * num_pairs > 1 else _MIN_ROWS_OF_ONE_MATRIX
    num_rows = max(width * heads_per_kv, min_rows)

    # [num_tiles, width, num_kv_heads, heads_per_kv, head_dim] -> [num_kv_heads, num_tiles, rows, head_dim]
    tiles = query[group.rows].view(num_tiles, width, num_kv_heads, heads_per_kv, head_dim)
    tiles = tiles.permute(2, 0, 1, 3, 4)
    tiles = tiles.flatten(2, 3) * scale
    if num_rows > width * heads_per_kv:
        tiles = torch.nn.functional.pad(tiles, (0, 0, 0, num_rows - width * heads_per_kv))
    pair_queries = tiles[:, group.pair_tiles].flatten(0, 1)  # [kv_heads * pairs, rows, head_dim]
    keys = layer_kv.keys.index_select(1, group.block_ids).view(-1, CHUNK, head_dim)
    values = layer_kv.values.index_select(1, group.block_ids).view(-1, CHUNK, head_dim)

    scores = torch.bmm(pair_queries, keys.transpose(1, 2)).float()
    scores = scores.view(num_kv_heads, num_pairs, num_rows, CHUNK)
    real = scores[:, :, : width * heads_per_kv]
    real = real.view(num_kv_heads, num_pairs, width, heads_per_kv, CHUNK)
    real.masked_fill_(group.hidden[None, :, :, None, :], float("-inf"))
    maxima = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores.sub_(maxima.clamp(min=-1e30)))
    sums = weights.sum(dim=-1, keepdim=True)
    partials = torch.bmm(weights.flatten(0, 1).to(values.dtype), values).float()
    partials = partials.view(num_kv_heads, num_pairs, num_rows, head_dim)

    merged = _merge(partials, maxima, sums, group.tiles_per_chunk)[:, :, : width * heads_per_kv]
    merged = merged.reshape(num_kv_heads, num_tiles, width, heads_per_kv, head_dim).permute(1, 2, 0, 3, 4)
    output[group.rows.flatten()] = merged.reshape(num_tiles * width, -1, head_dim).to(output.dtype)


def _merge(partials: Tensor, maxima: Tensor, sums: Tensor, tiles_per_chunk: tuple[int, ...]) -> Tensor:
    """Combine partial softmaxes [kv_heads, pairs, rows, ...] into [kv_heads, tiles, rows, head_dim]."""
    num_tiles = tiles_per_chunk[0]
    if len(tiles_per_chunk) == 1:
        return partials / sums
    starts = list(accumulate((0, *tiles_per_chunk[:-1])))
    highest = maxima[:, :num_tiles].clone()
    for start, count in zip(starts[1:], tiles_per_chunk[1:], strict=True):
        torch.maximum(highest[:, :count], maxima[:, start : start + count], out=highest[:, :count])
    total = torch.zeros_like(partials[:, :num_tiles])
    total_sum = torch.zeros_like(sums[:, :num_tiles])
    for start, count in zip(starts, tiles_per_chunk, strict=True):
        factor = torch.exp(maxima[:, start : start + count] - highest[:, :count])
        # Not addcmul: whether it rounds once or twice depends on an element's place in the tensor.
        total[:, :count] += factor * partials[:, start : start + count]
        total_sum[:, :count] += factor * sums[:, start : start + count]
    return total / total_sum
