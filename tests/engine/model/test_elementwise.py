"""Norms, activations and rotations: right, and the same bits for a row whatever stands beside it."""

import pytest
import torch
import torch.nn.functional as F

from engine.checkpoint.model_config import Activation, RopeConfig
from engine.model.activation import activate
from engine.model.norm import LayerNorm, RMSNorm
from engine.model.rope import Rope, rotate

WIDTHS = [36, 37, 96, 160, 576, 1536]
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


def rope_of(width, dtype):
    config, device = RopeConfig(), torch.device("cpu")
    rope = Rope(config, head_dim=width, max_positions=600, dtype=dtype, device=device)

    def call(x):
        positions = (x[:, :1].float().abs() * 100).long().flatten() % 600
        return rotate(x.unsqueeze(1), *rope.at(positions)).squeeze(1)

    return call


def functions(width, dtype):
    weight, bias = random(width, dtype=dtype, seed=1), random(width, dtype=dtype, seed=2)
    made = {
        "rms_norm": RMSNorm(weight, eps=1e-5),
        "layer_norm": LayerNorm(weight, bias, eps=1e-5),
        **{kind.value: lambda x, kind=kind: activate(x, kind) for kind in Activation},
    }
    return made | ({"rope": rope_of(width, dtype)} if width % 2 == 0 else {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_whatever_the_batch(width, dtype):
    x = random(512, width, dtype=dtype)
    for name, function in functions(width, dtype).items():
        whole = function(x)
        for rows in (1, 2, 3, 7, 33, 107, 171, 511):
            parts = torch.cat([function(part) for part in x.split(rows)])
            assert torch.equal(parts, whole), f"{name}, {rows} rows at a time"


@pytest.mark.parametrize(
    ("kind", "twin"),
    [
        (Activation.SILU, F.silu),
        (Activation.GELU, F.gelu),
        (Activation.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations_equal_torch(kind, twin):
    x = torch.cat([random(1000) * 3, torch.tensor([0.0, -0.0, 1e-20, -90.0, 90.0, -1e30, 1e30])])
    torch.testing.assert_close(activate(x, kind), twin(x.double()).float(), atol=1e-6, rtol=1e-5)
