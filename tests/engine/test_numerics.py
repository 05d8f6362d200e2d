"""What an engine says of its bits."""

import pytest
import torch

from engine.loading.numerics import BITWISE, torch_numerics
from tests.tiny import tiny_engine


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_cpu_promises_bits(kernels):
    info = tiny_engine(kernels=kernels).info
    assert (info.numerics, info.numerics_reason) == BITWISE == ("bitwise", None)


def test_torch_on_cuda_does_not_and_says_why():
    level, reason = torch_numerics(torch.device("cuda"))
    assert level == "tolerance"
    assert reason == "cuBLAS chooses its kernels by the number of rows"
