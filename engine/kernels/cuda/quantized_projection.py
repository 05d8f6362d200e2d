"""QuantizedProjection: a linear layer whose weight stays as a GGUF file stores it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.projection_layer import Cut, NormWeights, cut_depth
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix

_MAX_FUSED_BLOCKS = 4


@dataclass(frozen=True)
class QuantizedProjection:
    """As `Projection`; the gate and up rows of a gated layer are the two parts of the weight."""

    weight: QuantizedMatrix  # [N, K], or two parts of it where gated
    bias: Tensor | None  # T [N or 2N]
    norm: NormWeights | None
    activation: Activation | None
    is_gated: bool
    out_dtype: torch.dtype  # T, or float32 for logits

    @property
    def num_columns(self) -> int:
        """Values of a row of the output, N."""
        return self.weight.num_rows

    @property
    def out_rows(self) -> int:
        """Rows of the weight."""
        return self.weight.num_rows * self.weight.num_parts

    @property
    def depth(self) -> int:
        """Values of a row of the input, K."""
        return self.weight.num_columns

    @property
    def cut(self) -> Cut:
        """How the sum over K is cut: as for the dequantised weight."""
        return cut_depth(self.out_rows, self.depth)

    @property
    def has_fused_norm(self) -> bool:
        """Whether a kernel of few rows computes the norm; with more blocks it compiles for minutes."""
        return self.weight.layout.num_blocks <= _MAX_FUSED_BLOCKS
