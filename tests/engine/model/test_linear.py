"""The packed linear against float64, and its bits against themselves in other batches."""

import pytest
import torch

from engine.model.linear import Linear, can_prepack

DTYPES = [torch.float32, torch.bfloat16]


def layer(in_features, out_features, dtype, *, bias=True):
    generator = torch.Generator().manual_seed(in_features)
    weight = torch.randn(out_features, in_features, generator=generator) * in_features**-0.5
    return weight.to(dtype), torch.randn(out_features, generator=generator).to(dtype) if bias else None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 130])
def test_it_multiplies(dtype, bias, rows):
    weight, bias_tensor = layer(100, 37, dtype, bias=bias)
    x = torch.randn(rows, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.double() @ weight.double().T + (bias_tensor.double() if bias else 0)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    with torch.inference_mode():
        y = Linear(weight, bias_tensor)(x)
    assert y.shape == (rows, 37)
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not can_prepack(torch.float32), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(576, 960), (576, 3072), (1536, 576), (768, 2304), (3072, 768), (96, 256)])
def test_a_row_has_the_same_bits_whatever_the_batch(dtype, shape):
    weight, bias = layer(*shape, dtype)
    x = torch.randn(300, shape[0], generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.inference_mode():
        linear = Linear(weight, bias)
        whole = linear(x)
        for rows in (1, 2, 3, 5, 16, 33, 64, 128, 256):
            parts = torch.cat([linear(part) for part in x.split(rows)])
            assert torch.equal(parts, whole), f"{rows} rows at a time"
