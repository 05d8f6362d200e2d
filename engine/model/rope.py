"""Rotary position embedding (arXiv 2104.09864) and its ways of reaching longer contexts."""

import math

import torch
from torch import Tensor

from engine.checkpoint.model_config import RopeConfig, RopeScaling
from engine.interface.errors import CheckpointError


class Rope:
    """Rotates queries and keys by angles proportional to their positions; tables are made once."""

    def __init__(
        self,
        config: RopeConfig,
        *,
        head_dim: int,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # float32 as in training code: at long positions the rounding is part of what the model learnt
        positions = torch.arange(max_positions, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(config, head_dim).float()).repeat(1, 2)
        factor = attention_factor(config)
        sin = angles.sin() * factor
        sin[:, : head_dim // 2].neg_()  # rotate() then needs no negation
        self.cos = (angles.cos() * factor).to(device=device, dtype=dtype)  # [max_positions, head_dim]
        self.signed_sin = sin.to(device=device, dtype=dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin, each [num_tokens, 1, head_dim], once per step for all layers."""
        return self.cos[positions].unsqueeze(1), self.signed_sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate [num_tokens, num_heads, head_dim]; dimension i is paired with i + head_dim / 2."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * signed_sin


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Return radians per position, float64 [head_dim / 2], after scaling."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.freq_factors is not None:
        if len(config.freq_factors) != head_dim // 2:
            raise CheckpointError(
                f"rotary freq_factors: {len(config.freq_factors)} values, expected {head_dim // 2}"
            )
        frequencies = frequencies / torch.tensor(config.freq_factors, dtype=torch.float64)
    if config.scaling is RopeScaling.LINEAR:
        return frequencies / config.factor
    if config.scaling is RopeScaling.LLAMA3:
        return _scale_llama3(frequencies, config)
    if config.scaling is RopeScaling.YARN:
        return _scale_yarn(frequencies, config, head_dim)
    return frequencies


def attention_factor(config: RopeConfig) -> float:
    """Return the factor on cos and sin that YaRN uses to sharpen attention; 1 for the others."""
    if config.scaling is not RopeScaling.YARN:
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    return 0.1 * math.log(config.factor) + 1.0 if config.factor > 1.0 else 1.0


def _scale_llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Keep wavelengths short against the original context, stretch long ones, blend between."""
    original = config.original_max_position_embeddings
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / config.factor)


def _scale_yarn(frequencies: Tensor, config: RopeConfig, head_dim: int) -> Tensor:
    """Interpolate dimensions that turn less than beta_slow times, keep those above beta_fast."""

    def dimension_turning(num_turns: float) -> float:
        ratio = config.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(config.theta))

    low = max(math.floor(dimension_turning(config.beta_fast)), 0)
    high = min(math.ceil(dimension_turning(config.beta_slow)), head_dim - 1)
    span = max(high - low, 0.001)
    stretch = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / span).clamp(0.0, 1.0)
    return frequencies * (1.0 - stretch + stretch / config.factor)
