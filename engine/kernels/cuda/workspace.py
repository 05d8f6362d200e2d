"""Workspaces: the scratch memory of a model's kernels, sized once for every step."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.attention_workspace import AttentionWorkspace
from engine.kernels.cuda.layer_weights import AnyProjection, as_plain, shape_of
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepShape

MAX_ROWS_OF_BLOCKS = 128
"""Up to so many rows blocks are decoded where they are multiplied; above, once for all rows."""


class Workspaces(NamedTuple):
    """What the kernels of a step hand each other beside their results."""

    projection: ProjectionWorkspace
    attention: AttentionWorkspace
    sampling: SamplingWorkspace
    scratch: Tensor  # T: the largest matrix of blocks, widened; the head never is

    def widened(self, projection: QuantizedProjection) -> Projection | None:
        """Return the layer with room for its widened matrix; None for the head."""
        size = projection.out_rows * projection.depth
        if projection.out_dtype != self.scratch.dtype or size > len(self.scratch):
            return None
        return as_plain(projection, self.scratch[:size].view(projection.out_rows, projection.depth))

    @classmethod
    def sized_for(
        cls,
        config: ModelConfig,
        projections: Sequence[AnyProjection],
        shapes: Iterable[StepShape],
        *,
        max_tokens: int,
        max_rows: int,
        max_positions: int,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Workspaces":
        """Return room for steps of these shapes; of other shapes attention is slower, with the same bits.

        max_tokens counts the padding of a step, vocab_size the tokens that may be chosen.
        """
        heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, dtype)
        plain = [shape_of(projection, dtype) for projection in projections]
        return cls(
            ProjectionWorkspace(max_tokens, plain, device),
            AttentionWorkspace(heads, shapes, max_positions=max_positions, device=device),
            SamplingWorkspace(max_rows=max_rows, vocab_size=vocab_size, device=device),
            torch.empty(_scratch_size(projections, dtype, max_tokens), dtype=dtype, device=device),
        )


def _scratch_size(projections: Sequence[AnyProjection], dtype: torch.dtype, max_tokens: int) -> int:
    """Return the numbers of the largest matrix that is ever widened."""
    if max_tokens <= MAX_ROWS_OF_BLOCKS:
        return 0
    blocks = [one for one in projections if isinstance(one, QuantizedProjection) and one.out_dtype == dtype]
    return max((one.out_rows * one.depth for one in blocks), default=0)
