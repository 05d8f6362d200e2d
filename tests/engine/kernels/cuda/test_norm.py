"""Norms of rows, on their own and inside a projection: the same bits, in an order that the size alone fixes.

Not in bfloat16: Triton's interpreter rounds to it by cutting bits off.
"""

import dataclasses

import numpy as np
import pytest
import torch

from engine.kernels.cuda.norm import normalise_launch
from engine.kernels.cuda.projection import project
from engine.kernels.cuda.twins.projection import normalise
from tests.engine.kernels.cuda.projection_cases import random_projection, random_rows, run

DTYPES = [torch.float16, torch.float32]
TOLERANCE = {torch.float16: 2e-3, torch.float32: 2e-6}


def weights(kind, depth, dtype=torch.float16):
    return random_projection(4, depth, dtype, norm=kind).norm


def normalised(norm, x):
    out = torch.full_like(x, torch.nan)
    normalise_launch(norm, x, out).run()
    return out


STRIDE = 61


def every_few(depth, dtype, kind):
    """A projection whose product gives back every 61st value of rows after their norm."""
    projection = random_projection(4, depth, dtype, norm=kind)
    return dataclasses.replace(projection, weight=torch.eye(depth, dtype=dtype)[::STRIDE].contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("depth", [1, 65, 512, 700, 2049])
def test_rows_agree_with_the_twin(depth, kind, dtype):
    norm, x = weights(kind, depth, dtype), 3 * random_rows(3, depth, dtype) + 1
    actual, expected = normalised(norm, x), normalise(norm, x)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    if dtype == torch.float16:
        assert (actual == expected).float().mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("depth", [65, 600])
def test_a_projections_own_norm_has_the_same_bits(depth, kind, dtype):
    """At 1 row, at tiles of 16 and of 32 with a last block that is not full, and beside more than 32 rows."""
    projection = every_few(depth, dtype, kind)
    x = 2 * random_rows(33, depth, dtype) + 0.5
    alone = normalised(projection.norm, x)[:, ::STRIDE]
    for num_rows in (1, 9, 27, 33):
        assert torch.equal(run(project, projection, x[:num_rows]), alone[:num_rows])


def test_the_order_of_a_sum_is_the_tree_that_the_size_fixes():
    """Written out: squares of neighbours, groups of 8 added as a tree, 64 sums along the row, a tree."""
    depth = 1100
    x = random_rows(1, depth, torch.float32)
    norm = dataclasses.replace(weights("rms", depth, torch.float32), weight=torch.ones(depth))
    padded = np.zeros(1536, np.float32)
    padded[:depth] = x.numpy()
    even, odd = padded[0::2], padded[1::2]
    level = even * even + odd * odd
    for _ in range(2):
        level = level[0::2] + level[1::2]
    sums = np.zeros(64, np.float32)
    for chunk in level.reshape(3, 64):
        sums += chunk
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    scale = 1 / np.sqrt(sums[0] / np.float32(depth) + np.float32(norm.eps))
    torch.testing.assert_close(normalised(norm, x), x * scale, rtol=2e-7, atol=0)


def test_a_layer_norm_of_a_large_mean_keeps_its_small_differences():
    norm = weights("layer", 512, torch.float32)
    x = 1000 + random_rows(2, 512, torch.float32)
    torch.testing.assert_close(normalised(norm, x), normalise(norm, x), rtol=1e-3, atol=1e-3)
    assert normalised(norm, x).std() > 0.5


def test_rows_of_zeros_stay_finite():
    for kind in ("rms", "layer"):
        assert normalised(weights(kind, 100), torch.zeros(2, 100, dtype=torch.float16)).isfinite().all()


def test_a_row_of_nan_reaches_no_other():
    norm, x = weights("layer", 100), random_rows(3, 100)
    clean = normalised(norm, x)
    x[1, 7] = torch.nan
    broken = normalised(norm, x)
    assert torch.equal(broken[[0, 2]], clean[[0, 2]])
    assert broken[1].isnan().all()
