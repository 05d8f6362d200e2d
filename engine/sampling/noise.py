"""Position-keyed noise: a stateless hash of (seed, choice, position, token).

There is no generator and no state: whatever the server does to reach a position (batching, preemption,
speculation), the noise there is the same. The hash is 32-bit integer arithmetic so that every language
it is written in agrees to the bit; only the logarithms may differ by an ulp.

    bits = mix(mix(token) + low) ^ high,   mix = Murmur3's 32-bit finaliser, all modulo 2**32
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """64 bits that stand for (seed, choice, position), as two signed 32-bit integers."""

    low: int
    high: int


def noise_key(seed: int, choice: int, position: int) -> NoiseKey:
    """Mix seed (64-bit, signed or not), choice number and position; each step is a bijection of 64 bits."""
    low, high = noise_base(seed, choice)
    state = _mix_64(((high << 32 & _MASK_64) | (low & 0xFFFFFFFF)) ^ position)
    return NoiseKey(low=_signed_32(state), high=_signed_32(state >> 32))


def noise_base(seed: int, choice: int) -> tuple[int, int]:
    """Mix all but the position, as two signed 32-bit integers, low and high."""
    state = _mix_64(_mix_64(seed & _MASK_64) ^ (choice & _MASK_64))
    return _signed_32(state), _signed_32(state >> 32)


def gumbel_noise(keys: list[NoiseKey], num_tokens: int, *, device: torch.device) -> Tensor:
    """Return standard Gumbel noise, float32 [len(keys), num_tokens], for token ids 0 to num_tokens - 1.

    argmax(logits + noise) is a sample of softmax(logits).
    """
    return gumbel_from_bits(hash_bits(keys, num_tokens, device=device))


def gumbel_from_bits(bits: Tensor) -> Tensor:
    """Map int32 bits to Gumbel noise, float32 of the same shape.

    With x the bits as an unsigned number and u = (x + 0.5) / 2**32 the noise is -log(-log(u)). u never
    is 0 or 1, and both tails keep full precision, since u near 1 is held as the negative number u - 1.
    """
    offset = bits.to(torch.float32).add_(0.5).mul_(2.0**-32)  # u if not negative, else u - 1
    log_u = torch.where(offset > 0, offset.abs().log_(), offset.log1p())  # abs: log is slow where it is NaN
    return log_u.neg_().log_().neg_()


def hash_bits(keys: list[NoiseKey], num_tokens: int, *, device: torch.device) -> Tensor:
    """Return 32 random bits per key and token, as int32 [len(keys), num_tokens]."""
    low = torch.tensor([[key.low] for key in keys], dtype=torch.int32, device=device)
    high = torch.tensor([[key.high] for key in keys], dtype=torch.int32, device=device)
    return _mix_32_(_mixed_token_ids(num_tokens, device) + low).bitwise_xor_(high)


@functools.lru_cache(maxsize=8)
def _mixed_token_ids(num_tokens: int, device: torch.device) -> Tensor:
    """Return the inner mix, which depends on the token alone: computed once per vocabulary."""
    return _mix_32_(torch.arange(num_tokens, dtype=torch.int32, device=device))


def _mix_32_(x: Tensor) -> Tensor:
    """Mix int32 in place; products wrap as unsigned ones would, shifts must not drag the sign along."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    x.mul_(_signed_32(0x85EBCA6B))
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF))
    x.mul_(_signed_32(0xC2B2AE35))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _mix_64(x: int) -> int:
    """SplitMix64's output function after adding its constant."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _signed_32(x: int) -> int:
    """Return the low 32 bits as the signed number that int32 tensors hold."""
    return (x & 0xFFFFFFFF) - ((x & 0x80000000) << 1)
