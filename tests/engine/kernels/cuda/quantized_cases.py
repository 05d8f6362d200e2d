"""Random blocks of GGUF formats, and layers made of them."""

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.projection_layer import NormWeights, Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.quantized_blocks import BLOCK_BYTES
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix, pack
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.twins.quantized import dequantized_projection

EXTREME_SCALES = (65504.0, -65504.0, 2.0**-24, -(2.0**-24), 1023 * 2.0**-24, 0.0, 1.0, 0.33325)
"""Of float16: largest, subnormal, zero, and one whose bits are all in use."""

SCALE_PLACES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Bytes of a block at which its float16 scales begin."""


def random_rows(
    tensor_format: str, num_rows: int, num_columns: int, scales: tuple[float, ...], seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Return rows of random blocks with some of the given scales."""
    generator = np.random.default_rng(seed)
    size, num_bytes = BLOCK_BYTES[tensor_format]
    blocks = generator.integers(0, 256, (num_rows * num_columns // size, num_bytes), dtype=np.uint8)
    for place in SCALE_PLACES[tensor_format]:
        chosen = generator.choice(np.array(scales, dtype=np.float16), len(blocks))
        blocks[:, place : place + 2] = chosen[:, None].view(np.uint8)
    return blocks.reshape(num_rows, -1)


def reference(tensor_format: str, rows: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return what the gguf package makes of rows."""
    return torch.from_numpy(getattr(quants, tensor_format).dequantize_rows(rows).copy())


def exact_matrix(tensor_format: str, num_rows: int, num_columns: int, num_parts: int = 1) -> QuantizedMatrix:
    """Return a matrix whose weights are small multiples of a power of two: float32 sums of them are exact."""
    rows = random_rows(tensor_format, num_parts * num_rows, num_columns, (2.0**-6, -(2.0**-6)))
    return pack(rows, tensor_format, num_parts=num_parts)


def layer(
    matrix: QuantizedMatrix,
    *,
    bias: torch.Tensor | None = None,
    norm: NormWeights | None = None,
    activation: Activation | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> QuantizedProjection:
    """Return a layer with this weight, gated where it has two parts."""
    return QuantizedProjection(matrix, bias, norm, activation, matrix.num_parts == 2, out_dtype)


def workspace_for(projection: QuantizedProjection, dtype: torch.dtype) -> ProjectionWorkspace:
    """Return scratch for one layer."""
    plain: Projection = dequantized_projection(projection, dtype)
    return ProjectionWorkspace(128, [plain], torch.device("cpu"))
