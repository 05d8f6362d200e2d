"""Cases of the kernels that multiply weights in GGUF blocks."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from tests.gpu.cases import Case, Pair, rounding
from tests.gpu.setting import Setting
from tests.gpu.wiring import need

_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_SCALE_PLACES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
"""Bytes of a block at which its float16 scales begin: random bytes there would be any number, NaN too."""


def quantised_cases(setting: Setting) -> Iterator[Case]:
    """Yield every format, plain and gated, at few rows and at many."""
    formats = ("Q4_0", "Q6_K") if setting.rehearse else _FORMATS
    for tensor_format in formats:
        for num_parts in (1, 2):
            pairs = partial(_pairs, setting, tensor_format, num_parts)
            yield Case(f"{tensor_format}, {num_parts} parts", pairs, rounding(setting.dtype))


def _pairs(setting: Setting, tensor_format: str, num_parts: int) -> Iterator[Pair]:
    matrices, layers, rooms = (
        need("quantized_matrix"),
        need("quantized_projection"),
        need("projection_workspace"),
    )
    out_rows, depth = setting.number(48, 2048, 4096), setting.number(256, 1024, 4096)
    rows = _random_rows(tensor_format, num_parts * out_rows, depth)
    matrix = matrices.pack(rows, tensor_format, num_parts=num_parts).to(setting.device)
    projection = layers.QuantizedProjection(
        weight=matrix,
        bias=None,
        norm=None,
        activation=None,
        is_gated=num_parts == 2,
        out_dtype=setting.dtype,
    )
    plain = need("twins.quantized").dequantized_projection(projection, setting.dtype)
    for num_rows in (1, 40) if setting.rehearse else (1, 16, 33, 200):
        generator = torch.Generator().manual_seed(num_rows)
        x = torch.randn(num_rows, depth, generator=generator).to(setting.device, setting.dtype)
        outs = [torch.empty(num_rows, out_rows, dtype=setting.dtype, device=x.device) for _ in range(2)]
        workspace = rooms.ProjectionWorkspace(num_rows, [plain], x.device)
        for module, out in zip(("quantized", "twins.quantized"), outs, strict=True):
            need(module).project_quantized(projection, x, out, workspace)
        yield outs[0], outs[1]


def _random_rows(tensor_format: str, num_rows: int, num_columns: int) -> np.ndarray:
    size, num_bytes = need("quantized_blocks").BLOCK_BYTES[tensor_format]
    generator = np.random.default_rng(num_rows)
    blocks = generator.integers(0, 256, (num_rows * num_columns // size, num_bytes), dtype=np.uint8)
    for place in _SCALE_PLACES[tensor_format]:
        blocks[:, place : place + 2] = np.array([2.0**-9], dtype=np.float16).view(np.uint8)
    return blocks.reshape(num_rows, -1)
