"""The same noise as engine/kernels/cuda/noise.py in plain torch: the same bits."""

import torch
from torch import Tensor

from engine.kernels.cuda.twins.exact_math import add_exponent, log_near_one, logarithm

_MASK_32 = 2**32 - 1


def position_keys(base_low: Tensor, base_high: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low and high halves of noise_key() of each row, int32 as all arguments."""
    x = (base_low.long() & _MASK_32) | (base_high.long() << 32)
    x = (x ^ positions.long()) + _signed_64(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed_64(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed_64(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return x.to(torch.int32), (x >> 32).to(torch.int32)


def noise_bits(key_low: Tensor, key_high: Tensor, num_tokens: int) -> Tensor:
    """Return int32 [num_rows, num_tokens] of keys int32 [num_rows]."""
    token_ids = torch.arange(num_tokens, device=key_low.device)
    inner = _mix_32(token_ids) + (key_low.long() & _MASK_32).unsqueeze(1)
    return (_mix_32(inner & _MASK_32) ^ (key_high.long() & _MASK_32).unsqueeze(1)).to(torch.int32)


def gumbel(bits: Tensor) -> Tensor:
    """Return standard Gumbel noise, float32, of int32 bits."""
    offset = (bits.float() + 0.5) * 2.0**-32
    is_low, is_near_one = offset > 0, offset >= -0.2928932
    pattern = offset.view(torch.int32)
    exponent = torch.where(is_low, (pattern - 0x3F3504F3) >> 23, -(~is_near_one).int())
    mantissa = (pattern - (exponent << 23)).view(torch.float32)
    f = torch.where(is_low, mantissa - 1.0, torch.where(is_near_one, offset, offset * 2.0 + 1.0))
    return -logarithm(-add_exponent(log_near_one(f), exponent))


def _mix_32(x: Tensor) -> Tensor:
    """Mix int64 that holds unsigned 32-bit numbers."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B).bitwise_and(_MASK_32)
    x = ((x ^ (x >> 13)) * 0xC2B2AE35).bitwise_and(_MASK_32)
    return x.bitwise_xor(x >> 16)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> count).bitwise_and(2 ** (64 - count) - 1)


def _signed_64(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
