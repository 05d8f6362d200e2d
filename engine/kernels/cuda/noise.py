"""Position-keyed noise on the device: the integers of engine/sampling/noise.py to the bit.

The logarithms are those of exact_math.py, so the noise too is the same everywhere.
"""

import triton
import triton.language as tl

from engine.kernels.cuda.exact_math import add_exponent, log_near_one, logarithm

_HALF_UNIT: tl.constexpr = tl.constexpr(2.0**-32)
_LOWEST_NEAR_ONE: tl.constexpr = tl.constexpr(-0.2928932)  # sqrt(1/2) - 1


@triton.jit
def position_key(base_low, base_high, position):
    """Return noise_key() as two uint32, low and high, from noise_base() and a position, all int32."""
    low = base_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    high = base_high.to(tl.uint32, bitcast=True).to(tl.uint64)
    x = (low | (high << 32)) ^ position.to(tl.uint64)
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def mix_32(x):
    """Return Murmur3's 32-bit finaliser of uint32."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_bits(token_ids, key_low, key_high):
    """Return the 32 random bits of tokens, int32, under a key of uint32."""
    bits = mix_32(mix_32(token_ids.to(tl.uint32, bitcast=True)) + key_low) ^ key_high
    return bits.to(tl.int32, bitcast=True)


@triton.jit
def gumbel(bits):
    """Return standard Gumbel noise, float32, of int32 bits.

    With x the bits as an unsigned number and u = (x + 0.5) / 2**32 it is -log(-log(u)). u above one half is
    held as u - 1; there log(u) is the polynomial of u - 1 itself, or of 2 u - 1, which is exact: both tails
    keep full precision. log(u) is within 1 ulp, the noise within 2 (or 1.2e-7, where it is near 0).
    """
    offset = (bits.to(tl.float32) + 0.5) * _HALF_UNIT  # u where it is positive, else u - 1
    is_low = offset > 0.0
    is_near_one = offset >= _LOWEST_NEAR_ONE
    pattern = offset.to(tl.int32, bitcast=True)
    exponent = tl.where(is_low, (pattern - 0x3F3504F3) >> 23, tl.where(is_near_one, 0, -1))
    mantissa = (pattern - (exponent << 23)).to(tl.float32, bitcast=True)
    f = tl.where(is_low, mantissa - 1.0, tl.where(is_near_one, offset, offset * 2.0 + 1.0))
    log_u = add_exponent(log_near_one(f), exponent)
    return -logarithm(-log_u)
