"""The noise in the kernels against engine/sampling, Python's integers and float64."""

import math
import random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.cuda import exact_math, noise
from engine.kernels.cuda.twins import exact_math as twin_math
from engine.kernels.cuda.twins import noise as twin
from engine.sampling.noise import gumbel_from_bits, hash_bits, noise_base, noise_key

CPU = torch.device("cpu")
SEEDS = [0, 1, -1, 42, 2**63 - 1, -(2**63), 2**32, -(2**32) - 1]
EXTREME_BITS = [0, 1, 2, 2**31 - 1, 2**31 - 2, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 2**24, 2**23 + 1]


@triton.jit
def _bits(base, positions, token_ids, out, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    low, high = noise.position_key(
        tl.load(base + 2 * row), tl.load(base + 2 * row + 1), tl.load(positions + row)
    )
    lanes = tl.arange(0, BLOCK)
    bits = noise.noise_bits(tl.load(token_ids + lanes), low, high)
    tl.store(out + row * BLOCK + lanes, bits)


@triton.jit
def _gumbel(bits, out, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + lanes, noise.gumbel(tl.load(bits + lanes)))


@triton.jit
def _functions(x, logs, shares, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(logs + lanes, exact_math.logarithm(tl.load(x + lanes)))
    tl.store(shares + lanes, exact_math.share_of(tl.load(x + lanes)))


def int32(values):
    return torch.from_numpy(np.array(values, dtype=np.int64).astype(np.uint32).view(np.int32).copy())


def some_bits(count=2**16, seed=0):
    generator = np.random.default_rng(seed)
    near = [
        b + d
        for b in (0, 2**31, 2**32, int(2**32 * 0.70710678), int(2**32 / math.e))
        for d in range(-300, 300)
    ]
    bits = np.concatenate([np.array(near) % 2**32, generator.integers(0, 2**32, count - len(near))])
    return int32(bits)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1) | st.sampled_from(SEEDS),
    choice=st.integers(0, 200),
    position=st.integers(0, 2**31 - 1),
    first=st.integers(0, 200_000),
)
def test_integers_equal_those_of_the_engine(seed, choice, position, first):
    positions = int32([position, 0, 2**31 - 1, 7])
    token_ids = torch.cat([torch.arange(first, first + 32), torch.arange(32)]).int()
    base = torch.tensor([noise_base(seed, choice)] * 4, dtype=torch.int32)
    out = torch.empty(4, 64, dtype=torch.int32)
    _bits[(4,)](base, positions, token_ids, out, BLOCK=64)
    keys = [noise_key(seed, choice, p) for p in positions.tolist()]
    expected = hash_bits(keys, first + 32, device=CPU)
    assert torch.equal(out, expected[:, token_ids.long()])
    low, high = twin.position_keys(base[:, 0], base[:, 1], positions)
    assert [(k.low, k.high) for k in keys] == list(zip(low.tolist(), high.tolist(), strict=True))
    assert torch.equal(twin.noise_bits(low, high, first + 32), expected)


def test_the_base_is_two_signed_halves():
    for seed in SEEDS:
        for choice in (0, 1, 2**31):
            assert all(-(2**31) <= half < 2**31 for half in noise_base(seed, choice))
    assert noise_base(5, 0) == noise_base(5 + 2**64, 0) != noise_base(5, 1)


def gumbel_of(bits):
    out = torch.empty(len(bits))
    _gumbel[(len(bits) // 1024,)](bits, out, BLOCK=1024)
    return out


def test_noise_equals_its_twin_and_float64():
    bits = some_bits()
    got = gumbel_of(bits)
    assert torch.equal(got, twin.gumbel(bits))
    x = bits.numpy().view(np.uint32).astype(np.float64)
    offset = bits.numpy().astype(np.float32) + np.float32(0.5)
    offset = (offset * np.float32(2.0**-32)).astype(np.float64)
    exact = -np.log(-np.where(offset > 0, np.log(np.abs(offset)), np.log1p(np.minimum(offset, 0))))
    ulps = np.maximum(np.spacing(np.abs(exact).astype(np.float32)), 6e-8)
    assert (np.abs(got.double().numpy() - exact) / ulps).max() < 2.0
    ideal = -np.log(-np.where(x < 2**31, np.log((x + 0.5) / 2**32), np.log1p((x + 0.5 - 2**32) / 2**32)))
    np.testing.assert_allclose(got.double().numpy(), ideal, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(got, gumbel_from_bits(bits), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_extreme_bits_give_finite_noise_within_an_ulp_or_two(bits):
    got = gumbel_of(int32([bits] * 1024))[0].item()
    u = (bits + 0.5) / 2**32
    exact = -math.log(-(math.log(u) if u < 0.5 else math.log1p((bits + 0.5 - 2**32) / 2**32)))
    assert math.isfinite(got)
    assert abs(got - exact) <= max(2 * float(np.spacing(np.float32(abs(exact)))), 2.5e-7)


def test_log_u_keeps_its_relative_precision_where_u_is_almost_one():
    """The rare high noise decides: u - 1 of a few units of 2**-32 must not be rounded away."""
    bits = int32([2**32 - 1 - i for i in range(1024)])
    noise_here = gumbel_of(bits).double()
    log_u = -torch.exp(-noise_here)
    exact = torch.log1p(-(torch.arange(1024, dtype=torch.float64) + 0.5) / 2**32)
    assert ((log_u - exact) / exact).abs().max() < 3e-6


def random_floats(low, high, count=8192, seed=1):
    generator = random.Random(seed)
    return torch.tensor([math.exp(generator.uniform(math.log(low), math.log(high))) for _ in range(count)])


def test_logarithm_and_share_equal_their_twins_and_are_precise():
    x = torch.cat([random_floats(1e-37, 1e37), random_floats(1e-6, 100.0), torch.linspace(0.5, 2, 8192)])
    logs, shares = torch.empty_like(x), torch.empty(len(x), dtype=torch.int64)
    _functions[(len(x) // 1024,)](x, logs, shares, BLOCK=1024)
    assert torch.equal(logs, twin_math.logarithm(x))
    assert torch.equal(shares, twin_math.share_of(x))
    exact = x.double().log()
    ulps = (logs.double() - exact).abs() / torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    assert ulps.max() < 2.0
    wanted = torch.exp(-x.double()) * 2.0**44
    assert ((shares.double() - wanted).abs() <= 1.2e-7 * wanted + 1.0).all()


def test_shares_at_the_ends():
    x = torch.tensor([0.0, 64.0, 1e30, math.inf])
    assert twin_math.share_of(x).tolist() == [2**44, 0, 0, 0]
    assert twin_math.logarithm(torch.tensor([1.0])).item() == 0.0
