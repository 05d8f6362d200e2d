"""How attention is cut: what the model alone fixes, for its bits, and what may follow batch and card."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

# Keys are summed apart in splits of SPLIT positions, and in these in blocks of key_block(): both order sums,
# so that they depend on the model and never on the batch or the card.
SPLIT = 512
_KEY_BLOCK_BYTES = 16384  # of a block's keys; two blocks, with values, and 128 rows fit into 99 KB
_MAX_KEY_BLOCK = 128

# The rest moves work about and leaves every bit as it is.
_MIN_ROWS = 16  # the matrix units take no fewer
_MAX_ACCUMULATORS = 16384  # rows times head_dim of a program, twice in the registers of 8 warps
_MANY_ROWS = 64  # from here on a program is bound by arithmetic
_FEW_ROWS_PROGRAMS = 8  # wanted of a multiprocessor, so that long requests among short ones are cut up
_MANY_ROWS_PROGRAMS = 1
_FEW_ROWS_MERGE_UNROLL = 4  # splits whose partial results are on their way at once


class Heads(NamedTuple):
    """The heads of a layer's attention, and the dtype of their numbers."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.num_heads // self.num_kv_heads

    @property
    def head_block(self) -> int:
        """Numbers of a head with its padding: a power of two, at least 16."""
        return max(_power_of_two(self.head_dim), 16)

    @property
    def head_bytes(self) -> int:
        """Bytes of a head in shared memory."""
        return self.head_block * self.dtype.itemsize


class Tiling(NamedTuple):
    """How the rows (query token, head of the group) of a tile are laid out over programs."""

    rows: int  # of a program, padding included
    program_tokens: int
    tile_programs: int  # that share a tile's tokens


class LaunchOptions(NamedTuple):
    """What a launch says to Triton's compiler."""

    num_warps: int
    num_stages: int
    enable_fp_fusion: bool = False  # fma() says where


_FEW_ROWS_OPTIONS = LaunchOptions(num_warps=4, num_stages=5)  # block ids, then keys and values ahead
_MANY_ROWS_OPTIONS = LaunchOptions(num_warps=4, num_stages=3)
_MOST_ROWS_OPTIONS = LaunchOptions(num_warps=8, num_stages=3)


@dataclass(frozen=True)
class AttentionPlan:
    """The constants that the kernel is compiled for."""

    group: int
    head_dim: int
    head_block: int
    block_size: int
    rows: int
    split: int
    key_block: int
    merge_unroll: int
    has_window: bool
    is_parallel: bool  # several programs share the splits of a tile
    skips_masks: bool


def key_block(heads: Heads) -> int:
    """Return how many keys are multiplied at once: 128 for heads of up to 128 bytes, fewer above."""
    return min(_MAX_KEY_BLOCK, _KEY_BLOCK_BYTES // heads.head_bytes)


def cut_tiles(heads: Heads, tile_tokens: int) -> Tiling:
    """Cut tiles of up to `tile_tokens` tokens into programs that can hold their rows in registers."""
    limit = _MAX_ACCUMULATORS // max(heads.head_block, 128)
    if heads.dtype == torch.float32:
        limit = _MIN_ROWS  # float32 has no matrix units: more rows would only spill
    limit = max(limit, _power_of_two(heads.group))
    rows = min(max(_power_of_two(tile_tokens * heads.group), _MIN_ROWS), limit)
    program_tokens = min(tile_tokens, rows // heads.group)
    return Tiling(rows, program_tokens, -(-tile_tokens // program_tokens))


def plan_attention(
    heads: Heads,
    tiling: Tiling,
    *,
    block_size: int,
    has_window: bool,
    is_parallel: bool,
    split: int = SPLIT,
    block: int | None = None,
) -> AttentionPlan:
    """Return the constants for programs of a tiling; `block` keys at once instead of key_block()."""
    is_few = tiling.rows < _MANY_ROWS
    return AttentionPlan(
        group=heads.group,
        head_dim=heads.head_dim,
        head_block=heads.head_block,
        block_size=block_size,
        rows=tiling.rows,
        split=split,
        key_block=block or key_block(heads),
        merge_unroll=_FEW_ROWS_MERGE_UNROLL if is_few else 1,
        has_window=has_window,
        is_parallel=is_parallel,
        skips_masks=not is_few,
    )


def launch_options(heads: Heads, tiling: Tiling) -> LaunchOptions:
    """Return the options for programs of a tiling; shared memory stays within 99 KB, which every card has."""
    if tiling.rows < _MANY_ROWS:
        return _FEW_ROWS_OPTIONS
    is_large = tiling.rows > _MANY_ROWS or heads.head_block > 128
    return _MOST_ROWS_OPTIONS if is_large else _MANY_ROWS_OPTIONS


def num_split_programs(
    tiling: Tiling, *, num_programs: int, max_splits: int, num_multiprocessors: int
) -> int:
    """Return how many programs share a tile's splits, to fill a card that has `num_programs` else."""
    per_multiprocessor = _FEW_ROWS_PROGRAMS if tiling.rows < _MANY_ROWS else _MANY_ROWS_PROGRAMS
    return min(max(per_multiprocessor * num_multiprocessors // num_programs, 1), max_splits)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
