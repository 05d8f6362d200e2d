"""The same functions as engine/kernels/cuda/exact_math.py in plain torch: the same bits."""

import torch
from torch import Tensor

SHARE_BITS = 44
LEAST_NORMAL = 2.0**-126

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440054690583e-4
_LOG_COEFFICIENTS = (
    -0.07634493024247846,
    0.1276157564386257,
    -0.13160183062561404,
    0.14201758233756673,
    -0.16623357298103575,
    0.2000122686540681,
    -0.2500082103550073,
    0.33333331707804703,
)
_EXP_COEFFICIENTS = (
    0.0013814601844752,
    -0.008368715218962312,
    0.04166838788829774,
    -0.16666520645345378,
    0.4999999344869886,
)


def log_near_one(f: Tensor) -> Tensor:
    """Return log(1 + f) for float32 f from sqrt(1/2) - 1 to sqrt(2) - 1."""
    square = f * f
    return (square * f * _polynomial(f, _LOG_COEFFICIENTS) - square * 0.5) + f


def add_exponent(log_mantissa: Tensor, exponent: Tensor) -> Tensor:
    """Return log_mantissa + exponent * log(2)."""
    power = exponent.float()
    return (log_mantissa + power * _LN2_LOW) + power * _LN2_HIGH


def logarithm(x: Tensor) -> Tensor:
    """Return log(x) of positive, normal, finite float32."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    return add_exponent(log_near_one(mantissa - 1.0), exponent)


def share_of(distance: Tensor) -> Tensor:
    """Return exp(-distance) in units of 2**-44, rounded down, as int64; distance float32, at least 0."""
    near = distance.clamp(max=64.0)
    power = (near * 1.4426950408889634 + 0.5).to(torch.int32)
    whole = power.float()
    r = (near - whole * _LN2_HIGH) - whole * _LN2_LOW
    exponential = (r * r * _polynomial(r, _EXP_COEFFICIENTS) - r) + 1.0
    scale = ((127 + SHARE_BITS - power) << 23).view(torch.float32)
    return (exponential * scale).to(torch.int64)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
