"""The projections of a model by its configuration alone, without weights: what is to be compiled for it."""

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation, ModelConfig, Norm
from engine.kernels.cuda.projection_layer import NormWeights, Projection, ProjectionUse


def model_projections(config: ModelConfig, dtype: torch.dtype) -> list[ProjectionUse]:
    """Return qkv, o, up (with gate), down and head, as the decoder calls them, on the meta device."""
    make = _MetaProjections(config, dtype)
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_heads + 2 * config.num_kv_heads
    gates = 2 if config.is_gated else 1
    up = make.projection(
        gates * inner,
        hidden,
        config.mlp_bias,
        is_normed=True,
        activation=config.activation,
        is_gated=config.is_gated,
    )
    return [
        ProjectionUse(
            make.projection(heads * config.head_dim, hidden, config.qkv_bias, is_normed=True), False
        ),
        ProjectionUse(make.projection(hidden, config.num_heads * config.head_dim, config.o_bias), True),
        ProjectionUse(up, False),
        ProjectionUse(make.projection(hidden, inner, config.mlp_bias), True),
        ProjectionUse(
            make.projection(config.vocab_size, hidden, False, is_normed=True, out_dtype=torch.float32), False
        ),
    ]


class _MetaProjections:
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype

    def projection(
        self,
        out_rows: int,
        depth: int,
        has_bias: bool,
        *,
        is_normed: bool = False,
        activation: Activation | None = None,
        is_gated: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Projection:
        return Projection(
            weight=self._empty(out_rows, depth),
            bias=self._empty(out_rows) if has_bias else None,
            norm=self._norm(depth) if is_normed else None,
            activation=activation,
            is_gated=is_gated,
            out_dtype=out_dtype or self._dtype,
        )

    def _norm(self, depth: int) -> NormWeights:
        bias = self._empty(depth) if self._config.norm is Norm.LAYER else None
        return NormWeights(self._empty(depth), bias, self._config.norm_eps)

    def _empty(self, *size: int) -> Tensor:
        return torch.empty(*size, dtype=self._dtype, device="meta")
