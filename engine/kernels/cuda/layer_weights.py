"""Layer weights: matrices as the kernels multiply them, widened to T or as a GGUF file stores them."""

from collections.abc import Mapping
from typing import TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.checkpoint import StoredTensor
from engine.checkpoint.model_config import Activation
from engine.checkpoint.stored_tensor import GGUFTensor
from engine.kernels.cuda.projection_layer import NormWeights, Projection
from engine.kernels.cuda.quantized_formats import FORMATS
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix, pack
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.model.linear import take_stacked
from engine.model.weights import Weights

AnyProjection: TypeAlias = Projection | QuantizedProjection


def is_kept(stored: StoredTensor) -> TypeGuard[GGUFTensor]:
    """Tell whether the kernels multiply a matrix as it is stored."""
    return isinstance(stored, GGUFTensor) and stored.format in FORMATS


def take_matrix(
    weights: Weights, sizes: Mapping[str, int], in_features: int, *, num_parts: int, keeps_blocks: bool
) -> Tensor | QuantizedMatrix:
    """Take matrices that share their input, each of so many rows, one below the other as one.

    `num_parts`: 2 where they are a gate and its values. Blocks are kept where all have one format.
    """
    if keeps_blocks:
        found = [weights.find(f"{name}.weight", (size, in_features)) for name, size in sizes.items()]
        blocks = [one for one in found if is_kept(one)]
        if len(blocks) == len(found) and len({one.format for one in blocks}) == 1:
            for name, size in sizes.items():
                weights.stored(f"{name}.weight", size, in_features)  # taken, and checked on the host
            rows = np.concatenate([one.raw for one in blocks])
            matrix = pack(rows, blocks[0].format, num_parts=num_parts).to(weights.device)
            weights.num_bytes += matrix.num_bytes
            return matrix
    return take_stacked(weights, {f"{name}.weight": size for name, size in sizes.items()}, in_features)


def new_projection(
    weight: Tensor | QuantizedMatrix,
    bias: Tensor | None,
    norm: NormWeights | None,
    activation: Activation | None,
    *,
    is_gated: bool,
    out_dtype: torch.dtype,
) -> AnyProjection:
    """Return the layer of a matrix of either kind."""
    if isinstance(weight, Tensor):
        return Projection(weight, bias, norm, activation, is_gated, out_dtype)
    return QuantizedProjection(weight, bias, norm, activation, is_gated, out_dtype)


def as_plain(projection: QuantizedProjection, weight: Tensor) -> Projection:
    """Return the layer with this weight T [out_rows, depth] in the place of its blocks."""
    return Projection(
        weight=weight,
        bias=projection.bias,
        norm=projection.norm,
        activation=projection.activation,
        is_gated=projection.is_gated,
        out_dtype=projection.out_dtype,
    )


def shape_of(projection: AnyProjection, dtype: torch.dtype) -> Projection:
    """Return a plain layer of the same shape without memory, to plan workspaces for."""
    if isinstance(projection, Projection):
        return projection
    size = projection.out_rows, projection.depth
    return as_plain(projection, torch.empty(size, dtype=dtype, device="meta"))
