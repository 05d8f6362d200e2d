"""The hash against a plain Python twin, and the noise against the distribution it should have."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.noise import gumbel_from_bits, gumbel_noise, hash_bits, noise_key

CPU = torch.device("cpu")
seeds = st.integers(-(2**63), 2**63 - 1)


def mix(x):
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def unsigned(x):
    return x % 2**32


@given(seed=seeds, choice=st.integers(0, 200), position=st.integers(0, 100_000))
def test_the_tensor_hash_equals_plain_integers(seed, choice, position):
    key = noise_key(seed, choice, position)
    bits = hash_bits([key], 300, device=CPU)[0].tolist()
    expected = [mix((mix(t) + unsigned(key.low)) % 2**32) ^ unsigned(key.high) for t in range(300)]
    assert [unsigned(b) for b in bits] == expected


def test_the_noise_is_what_it_always_was():
    """A change here changes every seeded answer: it needs a new major version."""
    bits = hash_bits([noise_key(42, 0, 7), noise_key(-1, 3, 0)], 3, device=CPU)
    assert [[unsigned(b) for b in row] for row in bits.tolist()] == GOLDEN_BITS


GOLDEN_BITS = [[242018728, 3031525656, 3294986565], [2611008222, 4221539734, 1707097250]]


@given(seed=seeds)
def test_neighbouring_seeds_choices_and_positions_never_overlap(seed):
    keys = {noise_key(seed, choice, position) for choice in range(6) for position in range(30)}
    if seed < 2**63 - 1:
        keys |= {noise_key(seed + 1, choice, position) for choice in range(6) for position in range(30)}
        assert len(keys) == 360
    assert len(keys) >= 180


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_the_noise_is_finite_and_precise_at_both_ends(bits):
    bits += [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    signed = [b - 2**32 if b >= 2**31 else b for b in bits]
    got = gumbel_from_bits(torch.tensor(signed, dtype=torch.int32)).tolist()
    for x, value in zip(bits, got, strict=True):
        u = (x + 0.5) / 2**32
        expected = -math.log(-(math.log(u) if u < 0.5 else math.log1p(-(2**32 - x - 0.5) / 2**32)))
        assert value == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_bits_are_uniform_along_tokens_positions_and_seeds():
    by_token = hash_bits([noise_key(5, 0, 0)], 200_000, device=CPU).flatten()
    by_position = hash_bits([noise_key(5, 0, p) for p in range(20_000)], 4, device=CPU)[:, 1]
    by_seed = hash_bits([noise_key(s, 0, 9) for s in range(20_000)], 4, device=CPU)[:, 2]
    for sample in (by_token, by_position, by_seed):
        for shift in (0, 12, 24):
            counts = torch.bincount(((sample >> shift) & 0xFF).long(), minlength=256).double()
            expected = len(sample) / 256
            chi_square = ((counts - expected) ** 2 / expected).sum().item()
            assert 160 < chi_square < 370, (shift, chi_square)  # 255 degrees of freedom, about 5 sigma


def test_the_tail_is_not_short_of_rare_events():
    """u within exp(-12) of 1 decides whether a token far behind wins: it must not be too rare."""
    keys = [noise_key(1, 0, p) for p in range(400)]
    noise = gumbel_noise(keys, 50_000, device=CPU)
    for threshold in (8.0, 10.0, 12.0):
        expected = noise.numel() * -math.expm1(-math.exp(-threshold))
        count = (noise > threshold).sum().item()
        assert abs(count - expected) < 5 * math.sqrt(expected), (threshold, count, expected)
