"""Logarithm and exponential in single multiplications and additions, the same bits everywhere.

The library's functions differ by an ulp between processors, and a choice of token can hang on it. These
are polynomials (least largest relative error, fitted here) in float32, each operation rounded: kernels that
call them must be compiled with enable_fp_fusion=False, or a fused multiply-add changes the bits.
"""

import triton
import triton.language as tl

SHARE_BITS = 44
"""A share of 1 is 2**44: 2**18 tokens' shares still add up in int64."""

LEAST_NORMAL = 2.0**-126

_LN2_HIGH: tl.constexpr = tl.constexpr(0.693359375)  # 9 bits: times an exponent it is exact
_LN2_LOW: tl.constexpr = tl.constexpr(-2.12194440054690583e-4)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_FARTHEST: tl.constexpr = tl.constexpr(64.0)  # exp(-64) * 2**44 is below 1, as is all beyond
_SHARE_EXPONENT: tl.constexpr = tl.constexpr(127 + SHARE_BITS)


@triton.jit
def log_near_one(f):
    """Return log(1 + f) for f from sqrt(1/2) - 1 to sqrt(2) - 1, precise also where f is tiny."""
    p = f * -0.07634493024247846 + 0.1276157564386257
    p = p * f + -0.13160183062561404
    p = p * f + 0.14201758233756673
    p = p * f + -0.16623357298103575
    p = p * f + 0.2000122686540681
    p = p * f + -0.2500082103550073
    p = p * f + 0.33333331707804703
    square = f * f
    return (square * f * p - square * 0.5) + f


@triton.jit
def add_exponent(log_mantissa, exponent):
    """Return log_mantissa + exponent * log(2), for an int32 exponent."""
    power = exponent.to(tl.float32)
    return (log_mantissa + power * _LN2_LOW) + power * _LN2_HIGH


@triton.jit
def logarithm(x):
    """Return log(x) of positive, normal, finite float32."""
    bits = x.to(tl.int32, bitcast=True)
    # 0x3f3504f3 is sqrt(1/2): the mantissa is from there to sqrt(2)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    return add_exponent(log_near_one(mantissa - 1.0), exponent)


@triton.jit
def share_of(distance):
    """Return exp(-distance) in units of 2**-44, rounded down, as int64; distance float32, at least 0.

    Sums of it are exact: no order of adding changes them.
    """
    near = tl.minimum(distance, _FARTHEST)
    power = (near * _LOG2_E + 0.5).to(tl.int32)
    whole = power.to(tl.float32)
    r = (near - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = r * 0.0013814601844752 + -0.008368715218962312
    p = p * r + 0.04166838788829774
    p = p * r + -0.16666520645345378
    p = p * r + 0.4999999344869886
    exponential = (r * r * p - r) + 1.0
    scale = ((-power + _SHARE_EXPONENT) << 23).to(tl.float32, bitcast=True)
    return (exponential * scale).to(tl.int64)
