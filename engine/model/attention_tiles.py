"""Attention tiles: how a step's queries are cut into pieces of work, whatever the batch.

A *tile* is up to PROMPT_TILE consecutive query tokens of one request, a *split* is KV_SPLIT consecutive key
positions of it. Cuts depend on positions alone, never on the batch or on how a prompt was chunked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KV_SPLIT = 128
PROMPT_TILE = 128


@dataclass(frozen=True)
class QuerySpan:
    """The query tokens of one request in this step and the blocks that hold its keys."""

    start: int  # first row in the step's token list
    num_tokens: int
    first_position: int
    block_ids: Sequence[int]


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one width, and their (tile, split) pairs sorted by split number, then tile.

    Tiles are sorted by their number of splits, descending: the tiles that have a split number j are
    then the first `tiles_per_split[j]`, and merging needs slices only.
    """

    tile_width: int
    rows: Tensor | slice  # row of each query token, tile by tile; a slice where they are consecutive
    block_ids: Tensor  # [num_pairs * blocks_per_split]
    pair_tiles: Tensor  # [num_pairs]
    first_masked_pair: int  # pairs before it see all of their keys
    hidden: Tensor  # bool [num_masked_pairs, tile_width, 1, KV_SPLIT]: the key is after the query
    tiles_per_split: tuple[int, ...]

    @property
    def num_tiles(self) -> int:
        """Number of tiles; each has a first split."""
        return self.tiles_per_split[0]

    @property
    def num_pairs(self) -> int:
        """Number of (tile, split) pairs."""
        return sum(self.tiles_per_split)


def build_tile_groups(
    spans: Sequence[QuerySpan], *, block_size: int, device: torch.device
) -> list[TileGroup]:
    """Cut a step's queries into tile groups: one for all single tokens, one per longer tile.

    Longer tiles stand alone so that the scores held at once stay bounded.
    """
    singles = [span for span in spans if span.num_tokens == 1]
    groups = [_build_group(singles, 1, block_size, device)] if singles else []
    for span in spans:
        if span.num_tokens > 1:
            for offset in range(0, span.num_tokens, PROMPT_TILE):
                num_tokens = min(PROMPT_TILE, span.num_tokens - offset)
                tile = QuerySpan(
                    span.start + offset, num_tokens, span.first_position + offset, span.block_ids
                )
                groups.append(_build_group([tile], num_tokens, block_size, device))
    return groups


def _build_group(tiles: Sequence[QuerySpan], width: int, block_size: int, device: torch.device) -> TileGroup:
    blocks_per_split = KV_SPLIT // block_size
    tiles = sorted(tiles, key=lambda tile: -_num_splits(tile))
    counts = [_num_splits(tile) for tile in tiles]
    tiles_per_split = [sum(count > j for count in counts) for j in range(counts[0])]
    pairs = [(j, t) for j, num_tiles in enumerate(tiles_per_split) for t in range(num_tiles)]

    # Past the end of a block table stands block 0: its positions are hidden like any later position.
    tables = np.zeros((len(tiles), counts[0] * blocks_per_split), dtype=np.int64)
    for table, tile in zip(tables, tiles, strict=True):
        needed = min(len(tile.block_ids), counts[0] * blocks_per_split)
        table[:needed] = tile.block_ids[:needed]
    split_numbers = np.array([j for j, _ in pairs])
    pair_tiles = np.array([t for _, t in pairs])
    block_ids = tables.reshape(len(tiles), counts[0], blocks_per_split)[pair_tiles, split_numbers]

    offsets = np.arange(width)
    positions = np.array([tile.first_position for tile in tiles])[:, None] + offsets
    key_positions = split_numbers[:, None] * KV_SPLIT + np.arange(KV_SPLIT)
    hidden = key_positions[:, None, :] > positions[pair_tiles][:, :, None]
    first_masked_pair = int(hidden.any(axis=(1, 2)).argmax()) if hidden.any() else len(pairs)
    return TileGroup(
        tile_width=width,
        rows=_rows(np.array([tile.start for tile in tiles])[:, None] + offsets, device),
        block_ids=torch.from_numpy(block_ids.reshape(-1)).to(device),
        pair_tiles=torch.from_numpy(pair_tiles).to(device),
        first_masked_pair=first_masked_pair,
        hidden=torch.from_numpy(hidden[first_masked_pair:, :, None]).to(device),
        tiles_per_split=tuple(tiles_per_split),
    )


def _rows(rows: np.ndarray, device: torch.device) -> Tensor | slice:
    flat = rows.reshape(-1)
    if (np.diff(flat) == 1).all():
        return slice(int(flat[0]), int(flat[-1]) + 1)
    return torch.from_numpy(flat).to(device)


def _num_splits(tile: QuerySpan) -> int:
    return (tile.first_position + tile.num_tokens - 1) // KV_SPLIT + 1
