"""Attention over the paged KV cache: ragged, causal, grouped-query, and independent of the batch.

The work is cut into (tile, split) pairs (attention_tiles.py). Each pair yields a partial softmax;
the partials of a tile are merged in ascending order of splits. A row's bits are therefore the same alone or
among others, decoded or in a prompt chunk. (Partial softmax and merge: arXiv 2205.14135.)
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.attention_tiles import KV_SPLIT, TileGroup

# MKL's float32 kernels for fewer rows than this sum in another order: pad up to it. A single matrix goes
# through other kernels than a batch of them, which need more. oneDNN's bfloat16 kernels need none.
_MIN_ROWS = 4
_MIN_ROWS_OF_ONE_MATRIX = 16
_LOWEST = -1e30


def paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, groups: Sequence[TileGroup], *, scale: float
) -> Tensor:
    """Attend each query [num_tokens, num_heads, head_dim] to its request's keys up to its own position.

    keys and values [num_kv_heads, num_blocks, block_size, head_dim]. Returns [num_tokens, num_heads *
    head_dim]. Every token must be in one of the groups.
    """
    output = torch.empty_like(query)
    for group in groups:
        _attend(query, keys, values, group, scale, output)
    return output.flatten(1)


def _attend(
    query: Tensor, all_keys: Tensor, all_values: Tensor, group: TileGroup, scale: float, output: Tensor
) -> None:
    num_kv_heads, _, _, head_dim = all_keys.shape
    heads_per_kv = query.shape[1] // num_kv_heads
    num_real_rows = group.tile_width * heads_per_kv
    queries = query[group.rows].view(group.num_tiles, group.tile_width, num_kv_heads, heads_per_kv, head_dim)
    queries = queries.permute(2, 0, 1, 3, 4).reshape(num_kv_heads, group.num_tiles, num_real_rows, head_dim)
    queries = _pad_rows(queries * scale, num_kv_heads * group.num_pairs)
    if group.num_pairs > group.num_tiles:
        queries = queries.index_select(1, group.pair_tiles)
    keys = all_keys.index_select(1, group.block_ids).view(-1, KV_SPLIT, head_dim)
    values = all_values.index_select(1, group.block_ids).view(-1, KV_SPLIT, head_dim)

    scores = torch.bmm(queries.flatten(0, 1), keys.transpose(1, 2)).float()
    scores = scores.view(num_kv_heads, group.num_pairs, -1, KV_SPLIT)
    _hide_later_keys(scores[:, group.first_masked_pair :, :num_real_rows], group)
    maxima = scores.amax(dim=-1, keepdim=True)
    if group.tile_width > 1:
        maxima.clamp_(min=_LOWEST)  # a row of a tile may see nothing of its last split
    weights = scores.sub_(maxima).exp_()
    sums = weights.sum(dim=-1, keepdim=True)
    partials = torch.bmm(weights.flatten(0, 1).to(values.dtype), values)
    partials = partials.view(num_kv_heads, group.num_pairs, -1, head_dim)

    merged = _merge(torch.cat((partials, sums), dim=-1), maxima, group)[:, :, :num_real_rows]
    merged = merged.reshape(num_kv_heads, group.num_tiles, group.tile_width, heads_per_kv, head_dim)
    output[group.rows] = merged.permute(1, 2, 0, 3, 4).reshape(-1, *output.shape[1:]).to(output.dtype)


def _pad_rows(queries: Tensor, num_matrices: int) -> Tensor:
    """Pad the rows of [kv_heads, num_tiles, rows, head_dim] to what the matmul kernels want."""
    if queries.dtype is not torch.float32:
        return queries
    min_rows = _MIN_ROWS if num_matrices > 1 else _MIN_ROWS_OF_ONE_MATRIX
    num_missing = min_rows - queries.shape[2]
    return F.pad(queries, (0, 0, 0, num_missing)) if num_missing > 0 else queries


def _hide_later_keys(scores: Tensor, group: TileGroup) -> None:
    """Mask, in place, the scores [kv_heads, pairs, rows, KV_SPLIT] of the pairs from the first masked one."""
    width = group.tile_width
    by_token = scores.view(*scores.shape[:2], width, scores.shape[2] // width, KV_SPLIT)
    by_token.masked_fill_(group.hidden, float("-inf"))


def _merge(partials: Tensor, maxima: Tensor, group: TileGroup) -> Tensor:
    """Combine partial softmaxes into whole ones.

    partials [kv_heads, num_pairs, rows, head_dim + 1] have the sum of weights in the last column; maxima
    [kv_heads, num_pairs, rows, 1]. Returns [kv_heads, num_tiles, rows, head_dim].
    """
    if group.num_pairs > group.num_tiles:
        starts = list(accumulate(group.tiles_per_split))[:-1]
        later = list(zip(starts, group.tiles_per_split[1:], strict=True))
        highest = maxima[:, : group.num_tiles].clone()
        for start, count in later:
            highest[:, :count] = torch.maximum(highest[:, :count], maxima[:, start : start + count])
        # Products and sums apart, no addcmul: whether that rounds once or twice depends on the place.
        partials = partials * torch.exp(maxima - highest.index_select(1, group.pair_tiles))
        for start, count in later:
            partials[:, :count] += partials[:, start : start + count]
        partials = partials[:, : group.num_tiles]
    return partials[..., :-1] / partials[..., -1:]
