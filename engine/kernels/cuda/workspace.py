"""Workspaces: the scratch memory of a model's kernels, sized once for every step."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.attention_workspace import AttentionWorkspace
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepShape


class Workspaces(NamedTuple):
    """What the kernels of a step hand each other beside their results."""

    projection: ProjectionWorkspace
    attention: AttentionWorkspace
    sampling: SamplingWorkspace

    @classmethod
    def sized_for(
        cls,
        config: ModelConfig,
        projections: Sequence[Projection],
        shapes: Iterable[StepShape],
        *,
        max_tokens: int,
        max_rows: int,
        max_positions: int,
        vocab_size: int,
        device: torch.device,
    ) -> "Workspaces":
        """Return room for steps of these shapes; of other shapes attention is slower, with the same bits.

        max_tokens counts the padding of a step, vocab_size the tokens that may be chosen.
        """
        dtype = projections[0].weight.dtype
        heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, dtype)
        return cls(
            ProjectionWorkspace(max_tokens, projections, device),
            AttentionWorkspace(heads, shapes, max_positions=max_positions, device=device),
            SamplingWorkspace(max_rows=max_rows, vocab_size=vocab_size, device=device),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        tensors = [value for part in self for value in vars(part).values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
