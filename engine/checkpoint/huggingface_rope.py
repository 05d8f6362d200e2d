"""Rotary positions in config.json: `rope_parameters`, or the older `rope_scaling` and `rope_theta`."""

import math

from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import RopeConfig, RopeScaling
from engine.interface.errors import CheckpointError

_MAX_FACTOR = 1 << 20  # of rope scaling
_ORIGINAL = "original_max_position_embeddings"


def read_rope(metadata: Metadata, max_positions: int) -> RopeConfig:
    """Read the rotary settings as transformers does; raises CheckpointError for those not supported.

    A `rope_scaling` that is not empty takes the place of `rope_parameters` as a whole, its theta included.
    The theta and the original context may stand outside: there the theta is a default, and the original
    context wins.
    """
    section = _section(metadata, "rope_scaling") or _section(metadata, "rope_parameters")
    theta = metadata.real("rope_theta")
    if section is None:
        return RopeConfig(theta=theta)
    theta = section.real("rope_theta", default=theta)
    _check_not_per_layer(section)
    if section.real("partial_rotary_factor", default=1.0) != 1.0:
        raise CheckpointError(f"{metadata.path}: partial_rotary_factor other than 1 is not supported")
    kind = section.find_text("rope_type") or section.text("type", default="default")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, scaling=RopeScaling.LINEAR, factor=_read_factor(section))
    original = metadata.find_integer(_ORIGINAL) or section.integer(_ORIGINAL, default=max_positions)
    if kind == "llama3":
        return _read_llama3(section, theta, original)
    if kind == "yarn":
        return _read_yarn(section, theta, original)
    raise CheckpointError(
        f"{metadata.path}: rope scaling {shorten(kind)} is not supported; supported: linear, llama3, yarn"
    )


def _section(metadata: Metadata, key: str) -> Metadata | None:
    section = metadata.find_section(key)
    return section if section is not None and section.values else None


def _check_not_per_layer(section: Metadata) -> None:
    for key in ("full_attention", "sliding_attention"):
        if key in section:
            raise CheckpointError(
                f"{section.path}: rope_parameters that differ between layers are not supported"
            )


def _read_factor(section: Metadata) -> float:
    factor = section.real("factor")
    if not 1.0 <= factor <= _MAX_FACTOR:
        raise section.error("the factor of rope scaling", f"from 1 to {_MAX_FACTOR}", factor)
    return factor


def _read_llama3(section: Metadata, theta: float, original: int) -> RopeConfig:
    return RopeConfig(
        theta=theta,
        scaling=RopeScaling.LLAMA3,
        factor=_read_factor(section),
        original_max_position_embeddings=original,
        low_freq_factor=section.real("low_freq_factor"),
        high_freq_factor=section.real("high_freq_factor"),
    )


def _read_yarn(section: Metadata, theta: float, original: int) -> RopeConfig:
    if not section.boolean("truncate", default=True):
        raise CheckpointError(f"{section.path}: yarn rope scaling with truncate = false is not supported")
    factor = _read_factor(section)
    attention_factor = section.find_real("attention_factor")
    mscale = section.real("mscale", default=0.0)
    mscale_all_dim = section.real("mscale_all_dim", default=0.0)
    if attention_factor is None and mscale and mscale_all_dim:
        attention_factor = (0.1 * mscale * math.log(factor) + 1) / (
            0.1 * mscale_all_dim * math.log(factor) + 1
        )
    return RopeConfig(
        theta=theta,
        scaling=RopeScaling.YARN,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=section.real("beta_fast", default=32.0),
        beta_slow=section.real("beta_slow", default=1.0),
        attention_factor=attention_factor,
    )
