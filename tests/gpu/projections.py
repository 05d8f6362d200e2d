"""Projections: the linear layers of a model, with what the engine computes around each of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig, Norm
from tests.gpu.wiring import need


class Layer(NamedTuple):
    """One linear layer of a model."""

    name: str
    projection: Any  # engine.kernels.cuda.projection_layer.Projection
    has_residual: bool

    def input(self, num_rows: int, seed: int = 0) -> Tensor:
        """Return random rows; row i is the same for every number of rows."""
        weight = self.projection.weight
        generator = torch.Generator(weight.device).manual_seed(seed)
        wide = torch.randn(num_rows, weight.shape[1], generator=generator, device=weight.device)
        return wide.to(weight.dtype)

    def run(self, x: Tensor, *, module: str = "projection", exact_library: bool = False) -> Tensor:
        """Return the layer's output for some rows."""
        projection = self.projection
        size = (len(x), projection.num_columns)
        out = torch.empty(size, dtype=projection.out_dtype, device=x.device)
        residual = None
        if self.has_residual:
            residual = x.new_ones(size) * torch.arange(1, size[1] + 1, device=x.device) / size[1]
        workspace = need("projection_workspace").ProjectionWorkspace(len(x), [projection], x.device)
        need(module).project(projection, x, out, workspace, residual=residual, exact_library=exact_library)
        return out


def layers(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, with_head: bool = True
) -> Iterator[Layer]:
    """Yield the layers of a model with random weights, one at a time."""
    kv = config.num_kv_heads * config.head_dim
    heads, size, inner = config.num_heads * config.head_dim, config.hidden_size, config.intermediate_size
    up_rows = 2 * inner if config.is_gated else inner
    make = _Maker(config, dtype, device)
    yield make.layer("qkv", heads + 2 * kv, size, has_norm=True, has_bias=config.qkv_bias)
    yield make.layer("o", size, heads, has_bias=config.o_bias, has_residual=True)
    yield make.layer("up", up_rows, size, has_norm=True, has_bias=config.mlp_bias, is_up=True)
    yield make.layer("down", size, inner, has_bias=config.mlp_bias, has_residual=True)
    if with_head:
        yield make.layer("head", config.vocab_size, size, has_norm=True, is_head=True)


class _Maker:
    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._module = need("projection_layer")

    def _random(self, *shape: int, scale: float, mean: float = 0.0) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(sum(shape))
        wide = torch.randn(*shape, generator=generator, device=self._device)
        return wide.mul_(scale).add_(mean).to(self._dtype)

    def layer(
        self,
        name: str,
        out_rows: int,
        depth: int,
        *,
        has_norm: bool = False,
        has_bias: bool = False,
        has_residual: bool = False,
        is_up: bool = False,
        is_head: bool = False,
    ) -> Layer:
        config, norm = self._config, None
        if has_norm:
            norm_bias = self._random(depth, scale=0.1) if config.norm is Norm.LAYER else None
            weight = self._random(depth, scale=0.1, mean=1.0)
            norm = self._module.NormWeights(weight=weight, bias=norm_bias, eps=config.norm_eps)
        projection = self._module.Projection(
            weight=self._random(out_rows, depth, scale=depth**-0.5),
            bias=self._random(out_rows, scale=0.1) if has_bias else None,
            norm=norm,
            activation=config.activation if is_up else None,
            is_gated=is_up and config.is_gated,
            out_dtype=torch.float32 if is_head else self._dtype,
        )
        return Layer(name, projection, has_residual)
