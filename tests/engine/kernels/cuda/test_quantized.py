"""Products with quantised matrices: the twin's numbers, and the bits of a plain product of the same numbers.

Weights and inputs are small multiples of powers of two, so that float32 sums are exact and any order gives
the same bits: what differs is a wrong element, not rounding.
"""

import pytest
import torch

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.norm import NormWeights
from engine.kernels.cuda.projection import project
from engine.kernels.cuda.quantized import project_quantized
from engine.kernels.cuda.quantized_formats import FORMATS
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.twins import quantized as twin
from tests.engine.kernels.cuda.quantized_cases import exact_matrix, layer, workspace_for

_F16, _F32 = torch.float16, torch.float32


def _inputs(num_rows: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_rows)
    return torch.randint(-3, 4, (num_rows, depth), generator=generator).to(dtype)


def _run(
    projection: QuantizedProjection, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.full((len(x), projection.num_columns), 7.0, dtype=projection.out_dtype)
    workspace = workspace_for(projection, x.dtype)
    project_quantized(projection, x, out, workspace, residual=residual)
    assert not workspace.counters.any()
    return out


def _run_twin(
    projection: QuantizedProjection, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.full((len(x), projection.num_columns), 7.0, dtype=projection.out_dtype)
    twin.project_quantized(projection, x, out, workspace_for(projection, x.dtype), residual=residual)
    return out


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_every_format(tensor_format: str) -> None:
    projection = layer(exact_matrix(tensor_format, 37, 512))
    x = _inputs(3, 512, _F32)
    torch.testing.assert_close(_run(projection, x), _run_twin(projection, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tensor_format", "depth", "num_rows"),
    [
        *(("Q4_0", 576, num_rows) for num_rows in (1, 3, 16, 17, 33, 70)),
        *(("Q8_0", 1088, num_rows) for num_rows in (2, 33)),
        *(("Q5_K", 1280, num_rows) for num_rows in (2, 33)),
    ],
)
def test_pieces_that_end_within_a_step(tensor_format: str, depth: int, num_rows: int) -> None:
    projection = layer(exact_matrix(tensor_format, 33, depth))
    assert projection.cut.num_pieces > 1
    layout = projection.weight.layout
    assert projection.cut.piece_size % (layout.width * layout.num_blocks)
    x = _inputs(num_rows, depth, _F32)
    torch.testing.assert_close(_run(projection, x), _run_twin(projection, x), rtol=0, atol=0)


@pytest.mark.parametrize("num_rows", [2, 40])
@pytest.mark.parametrize("tensor_format", ["Q4_0", "Q6_K"])
def test_the_bits_are_those_of_a_plain_product(tensor_format: str, num_rows: int) -> None:
    projection = layer(exact_matrix(tensor_format, 35, 1280), out_dtype=_F16)
    x = _inputs(num_rows, 1280, _F16)
    want = torch.empty(num_rows, 35, dtype=_F16)
    plain = twin.dequantized_projection(projection, _F16)
    assert plain.cut == projection.cut
    project(plain, x, want, workspace_for(projection, _F16))
    torch.testing.assert_close(_run(projection, x), want, rtol=0, atol=0)


@pytest.mark.parametrize("num_rows", [1, 17, 36])
@pytest.mark.parametrize("tensor_format", ["Q4_1", "Q4_K", "Q5_K"])
def test_gated_with_norm_bias_and_residual(tensor_format: str, num_rows: int) -> None:
    matrix = exact_matrix(tensor_format, 37, 512, num_parts=2)
    generator = torch.Generator().manual_seed(0)
    norm = NormWeights((torch.randn(512, generator=generator) / 64).to(_F16), None, 1e-5)
    bias = torch.randn(74, generator=generator).to(_F16)
    projection = layer(matrix, bias=bias, norm=norm, activation=Activation.SILU, out_dtype=_F16)
    x = torch.randn(num_rows, 512, generator=generator).to(_F16)
    residual = torch.randn(num_rows, 37, generator=generator).to(_F16)
    got, want = _run(projection, x, residual), _run_twin(projection, x, residual)
    torch.testing.assert_close(got.float(), want.float(), rtol=4e-3, atol=4e-3)


def test_logits_are_not_rounded() -> None:
    projection = layer(exact_matrix("Q6_K", 65, 256), out_dtype=_F32)
    x = _inputs(2, 256, _F16)
    got = _run(projection, x)
    torch.testing.assert_close(got, _run_twin(projection, x), rtol=0, atol=0)
    assert not torch.equal(got, got.half().float())


def test_a_row_that_is_not_finite_reaches_no_other() -> None:
    projection = layer(exact_matrix("Q4_0", 33, 576))
    x = _inputs(3, 576, _F32)
    want = _run(projection, x)
    x[1] = torch.nan
    got = _run(projection, x)
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=0, atol=0)
    assert got[1].isnan().all()
