"""Products with quantised matrices in plain torch: the words are decoded, then it is a plain projection."""

import torch
from torch import Tensor

from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.quantized_formats import ROW_TILE, Scales
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.twins.projection import project


def project_quantized(
    projection: QuantizedProjection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    *,
    residual: Tensor | None = None,
    dependent: bool = False,  # noqa: ARG001 - the signature of the kernels
) -> None:
    """Compute a whole projection of x T [M, K] to out [M, N]."""
    plain = dequantized_projection(projection, x.dtype)
    project(plain, x, out, workspace, residual=residual)


def dequantized_projection(projection: QuantizedProjection, dtype: torch.dtype) -> Projection:
    """Return the same layer with a plain weight."""
    weight = torch.empty(
        projection.out_rows, projection.depth, dtype=dtype, device=projection.weight.low.device
    )
    dequantize(projection.weight, weight)
    return Projection(
        weight=weight,
        bias=projection.bias,
        norm=projection.norm,
        activation=projection.activation,
        is_gated=projection.is_gated,
        out_dtype=projection.out_dtype,
    )


def dequantize(matrix: QuantizedMatrix, out: Tensor) -> None:
    """Write the matrix to out T [num_parts * N, K]."""
    quants = _quants(matrix).float() - matrix.layout.offset
    scale, minimum = (values.repeat_interleave(16, dim=1) for values in _scales(matrix))
    values = quants * scale + minimum
    parts = values.view(matrix.num_parts, -1, values.shape[1])
    out.copy_(parts[:, : matrix.num_rows, : matrix.num_columns].reshape(out.shape))


def dequantize_rows(matrix: QuantizedMatrix, ids: Tensor, out: Tensor) -> None:
    """Write row ids[i] of a matrix of one part to out[i]."""
    whole = torch.empty(matrix.num_rows, matrix.num_columns, dtype=out.dtype, device=out.device)
    dequantize(matrix, whole)
    out.copy_(whole[ids.long()])


def _quants(matrix: QuantizedMatrix) -> Tensor:
    """Return the unsigned quants [rows, K], padding included."""
    quants = _fields(matrix.low, matrix.layout.low_bits)
    if matrix.high is None:
        return quants
    return quants | _fields(matrix.high, matrix.layout.high_bits) << matrix.layout.low_bits


def _fields(words: Tensor, bits: int) -> Tensor:
    """Return the fields of words [row tiles, tiles, 16, width] as int32 [rows, K]."""
    shifts = torch.arange(0, 16, bits, dtype=torch.int32, device=words.device).view(-1, 1, 1)
    fields = words.int()[:, :, None] >> shifts & ((1 << bits) - 1)
    return fields.permute(0, 3, 1, 2, 4).reshape(words.shape[0] * ROW_TILE, -1)


def _scales(matrix: QuantizedMatrix) -> tuple[Tensor, Tensor]:
    """Return what each 16 elements are multiplied by and what is then added, float32 [rows, K / 16]."""
    kind, num_rows = matrix.layout.scales, matrix.scales.shape[0] * ROW_TILE
    words = matrix.scales.permute(0, 3, 1, 2).reshape(num_rows, -1, matrix.layout.num_scale_words)
    halves = words.contiguous().view(torch.float16).float()
    if kind is Scales.BLOCK:
        scale, minimum = halves, torch.zeros_like(halves)
    elif kind is Scales.BLOCK_MIN:
        scale, minimum = halves[..., ::2], halves[..., 1::2]
    else:
        d, dmin = halves[..., :1], halves[..., 1:2]
        factors = words[..., 1:].contiguous().view(torch.uint8)
        if kind is Scales.SUPER_MIN:
            scale, minimum = d * factors[..., :8], -(dmin * factors[..., 8:])
        elif kind is Scales.SUPER_16:
            scale = d * factors.view(torch.int8)
            minimum = torch.zeros_like(scale)
        else:
            scale, minimum = d * (factors & 15), -(dmin * (factors >> 4))
    repeats = matrix.layout.step // 16 // scale.shape[2]
    return tuple(
        values.repeat_interleave(repeats, dim=2).reshape(num_rows, -1) for values in (scale, minimum)
    )  # type: ignore[return-value]
