"""AttentionWorkspace: memory that attention needs beside its operands, and the sizes of its launches."""

from collections.abc import Iterable

import torch

from engine.kernels.cuda.attention_plan import (
    SPLIT,
    AttentionPlan,
    Heads,
    LaunchOptions,
    Tiling,
    cut_tiles,
    key_block,
    launch_options,
    num_split_programs,
    plan_attention,
)
from engine.kernels.cuda.step_buffers import StepShape

MAX_PARTIAL_BYTES = 256 << 20
_ASSUMED_MULTIPROCESSORS = 132  # where there is no card


class AttentionWorkspace:
    """Where the programs that share a tile's splits leave partial results, and count which of them is last.

    One serves all layers, and all steps of the given shapes, in a stream. A step whose partial results would
    take more than MAX_PARTIAL_BYTES has one program walk all splits of a tile instead, to the same bits.
    `split` and `key_block_size` fix the bits; tests make them smaller. `split_programs`: that many share a
    tile's splits instead of as many as fill the card.
    """

    def __init__(
        self,
        heads: Heads,
        shapes: Iterable[StepShape],
        *,
        max_positions: int,
        device: torch.device,
        split: int = SPLIT,
        key_block_size: int | None = None,
        split_programs: int | None = None,
    ) -> None:
        self.heads, self.split = heads, split
        self.key_block = key_block_size or key_block(heads)
        assert split % self.key_block == 0
        self.max_splits = -(-max_positions // split)
        self._wanted_programs = split_programs
        self._num_multiprocessors = _num_multiprocessors(device)
        shapes = list(shapes)
        sizes = [self._partial_size(shape) for shape in shapes]
        self._size = max((size for size in sizes if 4 * size <= MAX_PARTIAL_BYTES), default=0)
        self.partials = torch.empty(max(self._size, 1), device=device)
        num_counters = max((self._num_programs(shape) for shape in shapes), default=1)
        self.counters = torch.zeros(num_counters, dtype=torch.int32, device=device)

    def tiling(self, shape: StepShape) -> Tiling:
        """Return how a step's tiles are cut into programs."""
        return cut_tiles(self.heads, shape.tile_tokens)

    def plan(self, shape: StepShape, *, block_size: int, has_window: bool) -> AttentionPlan:
        """Return the constants of a step's kernel."""
        return plan_attention(
            self.heads,
            self.tiling(shape),
            block_size=block_size,
            has_window=has_window,
            is_parallel=self.num_split_programs(shape) > 1,
            split=self.split,
            block=self.key_block,
        )

    def launch_options(self, shape: StepShape) -> LaunchOptions:
        """Return the compiler's options for a step's kernel on this card."""
        return launch_options(self.heads, self.tiling(shape))

    def num_split_programs(self, shape: StepShape) -> int:
        """Return how many programs share the splits of a tile; no bit depends on it."""
        num_programs = self._num_programs(shape)
        if self._partial_size(shape) > self._size or num_programs > len(self.counters):
            return 1
        if self._wanted_programs is not None:
            return self._wanted_programs
        return num_split_programs(
            self.tiling(shape),
            num_programs=num_programs,
            max_splits=self.max_splits,
            num_multiprocessors=self._num_multiprocessors,
        )

    def _num_programs(self, shape: StepShape) -> int:
        return shape.num_tiles * self.tiling(shape).tile_programs * self.heads.num_kv_heads

    def _partial_size(self, shape: StepShape) -> int:
        """Return how many numbers the partial results of a step take: every split's, whoever computes it."""
        rows = self.tiling(shape).program_tokens * self.heads.group
        return self._num_programs(shape) * self.max_splits * rows * (self.heads.head_dim + 2)


def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _ASSUMED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
