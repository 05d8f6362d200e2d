"""Random projections, and how closely a kernel must agree with its twin."""

import torch

from engine.kernels.cuda.projection_layer import NormWeights, Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace

CPU = torch.device("cpu")


def random_projection(
    num_columns,
    depth,
    dtype=torch.float16,
    *,
    norm=None,
    bias=False,
    activation=None,
    gated=False,
    out_dtype=None,
    seed=0,
    device=CPU,
):
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator)

    def on_device(tensor):
        return tensor.to(dtype).to(device)

    out_rows = 2 * num_columns if gated else num_columns
    weights = None
    if norm is not None:
        shift = on_device(0.1 * random(depth)) if norm == "layer" else None
        weights = NormWeights(on_device(1 + 0.1 * random(depth)), shift, 1e-5)
    return Projection(
        on_device(random(out_rows, depth) * depth**-0.5),
        on_device(random(out_rows)) if bias else None,
        weights,
        activation,
        gated,
        out_dtype or dtype,
    )


def random_rows(num_rows, depth, dtype=torch.float16, *, seed=1):
    return torch.randn(num_rows, depth, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(project, projection, x, *, residual=None, workspace=None, **options):
    """Project into an output of NaN, so that what is not written shows."""
    workspace = workspace or ProjectionWorkspace(len(x), [projection], CPU)
    out = torch.full((len(x), projection.num_columns), torch.nan, dtype=projection.out_dtype)
    project(projection, x, out, workspace, residual=residual, **options)
    assert not workspace.counters.any()
    return out


def assert_agrees(actual, expected):
    """Equal but for sums in another order: a rounding left out or added changes a fifth of elements."""
    assert actual.dtype == expected.dtype
    if actual.dtype == torch.float32:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=5e-6)
    else:
        torch.testing.assert_close(actual, expected, rtol=4e-3, atol=4e-3)
        assert (actual == expected).float().mean() > 0.97
