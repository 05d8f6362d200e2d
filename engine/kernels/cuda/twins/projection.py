"""project in plain torch, row by row, so that a row's bits cannot depend on the others."""

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.projection_layer import NormWeights, Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace


def project(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,  # noqa: ARG001 - the signature of the kernels
    *,
    residual: Tensor | None = None,
    exact_library: bool = False,  # noqa: ARG001
    dependent: bool = False,  # noqa: ARG001
) -> None:
    """Compute out [M, N] = f(x [M, K]) (+ residual [M, N]), with sums in float64, rounded as in kernels."""
    rows = x if projection.norm is None else normalise(projection.norm, x)
    y = multiply(projection, rows).to(projection.out_dtype)
    if projection.bias is not None:
        y = (y.float() + projection.bias.float()).to(y.dtype)
    if projection.is_gated:
        gate, up = y.chunk(2, dim=-1)
        y = (_activated(gate, projection.activation).float() * up.float()).to(y.dtype)
    else:
        y = _activated(y, projection.activation)
    if residual is not None:
        y = (residual.float() + y.float()).to(y.dtype)
    out.copy_(y)


def normalize(x: Tensor, norm: NormWeights, out: Tensor) -> None:
    """Apply a norm to rows [M, K], with the bits that project() gives them."""
    out.copy_(normalise(norm, x))


def normalise(norm: NormWeights, x: Tensor) -> Tensor:
    """Apply RMSNorm or LayerNorm to rows [M, K]."""
    wide = x.double()
    mean = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
    if norm.bias is not None:
        mean = torch.stack([row.mean(dtype=torch.float64) for row in wide])[:, None].float().double()
    squares = torch.stack([row.square().mean() for row in wide - mean])[:, None].float()
    scale = torch.rsqrt(squares + norm.eps)
    centred = (x.float() - mean.float()) * scale
    if norm.bias is None:
        return (centred.to(x.dtype).float() * norm.weight.float()).to(x.dtype)
    return (centred * norm.weight.float() + norm.bias.float()).to(x.dtype)


def multiply(projection: Projection, x: Tensor) -> Tensor:
    """Return x W^T in float32 [M, out_rows]: the pieces of K apart, then added in ascending order."""
    size = projection.cut.piece_size
    total = torch.zeros(len(x), projection.weight.shape[0], dtype=torch.float32, device=x.device)
    for begin in range(0, projection.depth, size):
        piece = slice(begin, begin + size)
        weight, rows = projection.weight[:, piece].double(), x[:, piece].double()
        total += torch.stack([weight @ row for row in rows]).float()
    return total


def _activated(x: Tensor, activation: Activation | None) -> Tensor:
    """Apply an activation in float32, rounded to the dtype of `x`."""
    wide = x.float()
    if activation is Activation.SILU:
        wide = wide / (1.0 + torch.exp(-wide))
    elif activation is Activation.GELU:
        wide = 0.5 * wide * (1.0 + torch.erf(wide * 0.5**0.5))
    elif activation is Activation.GELU_TANH:
        wide = wide / (1.0 + torch.exp(-1.5957691216057308 * (wide + 0.044715 * wide**3)))
    return wide.to(x.dtype)
