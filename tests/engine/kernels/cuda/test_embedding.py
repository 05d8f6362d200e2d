"""The embeddings of a step's tokens: the kernel against its twin."""

import pytest
import torch

from engine.kernels.cuda import embedding
from engine.kernels.cuda.twins import embedding as twin


@pytest.mark.parametrize("hidden", [16, 100, 1024, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("has_positions", [False, True])
def test_kernel_twin_and_model_agree(hidden, dtype, has_positions):
    torch.manual_seed(hidden)
    table, places = torch.randn(11, hidden, dtype=dtype), torch.randn(7, hidden, dtype=dtype)
    token_ids = torch.tensor([10, 0, 3, 10, 9], dtype=torch.int32)
    positions = torch.tensor([6, 0, 1, 5, 9], dtype=torch.int32)  # the last belongs to no token of the step
    outs = [torch.full((5, hidden), 7.0, dtype=dtype) for _ in range(2)]
    for embed, out in zip((embedding.embed, twin.embed), outs, strict=True):
        embed(token_ids, positions, table, places if has_positions else None, out, 4)
    # the interpreter cuts a bfloat16 off instead of rounding it
    tolerance = 2**-7 if dtype == torch.bfloat16 and has_positions else 0.0
    torch.testing.assert_close(*outs, rtol=tolerance, atol=0.0)
    assert (outs[0][4] == 7.0).all()
    expected = table[[10, 0, 3, 10]] + (places[[6, 0, 1, 5]] if has_positions else 0.0)
    assert torch.equal(outs[1][:4], expected)
