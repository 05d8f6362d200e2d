"""What the header of a GGUF file says about the model, to the parts of ModelConfig that families share."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.checkpoint.gguf_file import GGUFTensorInfo
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import Activation, ModelConfig, RopeConfig, RopeScaling
from engine.interface.errors import CheckpointError

logger = logging.getLogger(__name__)

_OFF = (0.0, False)
_ONE = (0.0, 1.0)
_NEUTRAL: dict[str, tuple[float | bool, ...]] = {
    **dict.fromkeys(("expert_count", "expert_used_count", "expert_shared_count"), _OFF),
    **dict.fromkeys(("nextn_predict_layers", "leading_dense_block_count", "moe_every_n_layers"), _OFF),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias"), _OFF),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), _OFF),
    **dict.fromkeys(("attention.q_lora_rank", "attention.kv_lora_rank", "rope.scaling.alpha"), _OFF),
    **dict.fromkeys(("attention.temperature_length", "attention.temperature_scale"), _OFF),
    **dict.fromkeys(("attention.shared_kv_layers", "full_attention_interval", "num_loops"), _OFF),
    **dict.fromkeys(("use_parallel_residual", "swin_norm", "rope.scaling.yarn_log_multiplier"), _OFF),
    **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale"), _ONE),
    **dict.fromkeys(("attention.output_scale", "attention.value_scale"), _ONE),
    "attention.causal": (True,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
}
"""Keys that change the forward pass of other architectures, with the values that leave it as it is."""

_KNOWN = frozenset(
    {"vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"}
    | {"attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"}
    | {"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.sliding_window"}
    | {"attention.scale", "pooling_type", "rope.dimension_count", "rope.freq_base", "rope.scale_linear"}
    | {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.finetuned"}
    | {"rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
)
"""Keys that are read, or that say again what others do."""


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """A file's metadata and its list of tensors."""

    metadata: Metadata
    architecture: str  # before the keys of the model's shape
    tensors: Mapping[str, GGUFTensorInfo]
    freq_factors: tuple[float, ...] | None  # Llama 3's divisors of rotary frequencies


def check_foreign_keys(header: GGUFHeader, config: ModelConfig) -> None:
    """Raise CheckpointError for a value that would need another forward pass, naming it.

    A number that neither the architecture nor this module knows is named in a warning.
    """
    metadata, architecture = header.metadata, header.architecture
    neutral = {**_NEUTRAL, "attention.scale": (0.0, config.head_dim**-0.5)}
    unknown = []
    for key in sorted(key for key in metadata.values if key.startswith(f"{architecture}.")):
        suffix, value = key.removeprefix(f"{architecture}."), metadata.find(key)
        if suffix in neutral and not _is_neutral(value, neutral[suffix]):
            raise CheckpointError(
                f"{metadata.path}: {key} = {shorten(value)} is not supported: it changes the forward pass, "
                "and only other architectures have it"
            )
        if suffix not in neutral and suffix not in _KNOWN and not isinstance(value, str):
            unknown.append(key)
    if unknown:
        logger.warning("%s: not applied: %s", metadata.path, ", ".join(unknown))


def _is_neutral(value: object, neutral: tuple[float | bool, ...]) -> bool:
    values = value if isinstance(value, list) else [value]  # of each layer, or of all
    return all(
        isinstance(number, int | float)
        and any(math.isclose(number, other, rel_tol=1e-3) for other in neutral)
        for number in values
    )


def check_whole_model(metadata: Metadata) -> None:
    """Raise CheckpointError for a file that holds something else than one whole model."""
    if metadata.text("general.type", default="model") != "model":
        raise CheckpointError(
            f"{metadata.path}: holds a GGUF {shorten(metadata.find('general.type'))}, not a whole model"
        )
    if metadata.integer("split.count", default=1) > 1:
        raise CheckpointError(
            f"{metadata.path}: one part of a split model; join them with `llama-gguf-split --merge` first"
        )


def check_sliding_window(metadata: Metadata, architecture: str) -> None:
    """Raise CheckpointError for sliding-window attention shorter than the context."""
    key = f"{architecture}.attention.sliding_window"
    window = metadata.integer(key, default=0)
    if 0 < window < metadata.integer(f"{architecture}.context_length"):
        raise CheckpointError(
            f"{metadata.path}: sliding-window attention ({key} = {window}, shorter than the context) "
            "is not supported"
        )


def read_sizes(header: GGUFHeader, *, norm_eps: str) -> ModelConfig:
    """Read what every family has, as a model with SiLU and without rotary positions, biases and head norms.

    `norm_eps` is the key of the norms' epsilon. Raises CheckpointError for what is missing or unsupported.
    """
    metadata, prefix = header.metadata, header.architecture
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{metadata.path}: tensor token_embd.weight is missing")
    hidden_size = metadata.integer(f"{prefix}.embedding_length")
    num_heads = _uniform_integer(metadata, f"{prefix}.attention.head_count")
    return ModelConfig(
        architecture=prefix,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=_uniform_integer(metadata, f"{prefix}.feed_forward_length"),
        num_layers=metadata.integer(f"{prefix}.block_count"),
        num_heads=num_heads,
        num_kv_heads=_uniform_integer(metadata, f"{prefix}.attention.head_count_kv", default=num_heads),
        head_dim=_read_head_dim(metadata, prefix, hidden_size, num_heads),
        max_position_embeddings=metadata.integer(f"{prefix}.context_length"),
        norm_eps=metadata.real(f"{prefix}.{norm_eps}"),
        activation=Activation.SILU,
        rope=None,
        tie_word_embeddings="output.weight" not in header.tensors,
    )


def _uniform_integer(metadata: Metadata, key: str, *, default: int | None = None) -> int:
    """Read a number that may be stored once per layer; layers that differ are not supported."""
    per_layer = metadata.find(key)
    if not isinstance(per_layer, list):
        return metadata.integer(key, default=default)
    if not per_layer or any(value != per_layer[0] for value in per_layer):
        raise CheckpointError(f"{metadata.path}: {key} differs between layers, which is not supported")
    return Metadata({key: per_layer[0]}, path=metadata.path).integer(key)


def _read_head_dim(metadata: Metadata, prefix: str, hidden_size: int, num_heads: int) -> int:
    head_dim = metadata.integer(f"{prefix}.attention.key_length", default=hidden_size // max(num_heads, 1))
    if metadata.integer(f"{prefix}.attention.value_length", default=head_dim) != head_dim:
        raise CheckpointError(f"{metadata.path}: keys and values of different length are not supported")
    return head_dim


def read_gguf_rope(header: GGUFHeader, head_dim: int) -> RopeConfig:
    """Read the rotary settings as llama.cpp does: a factor without a type is linear, a factor of 0 is 1."""
    metadata, prefix, freq_factors = header.metadata, header.architecture, header.freq_factors
    if metadata.integer(f"{prefix}.rope.dimension_count", default=head_dim) != head_dim:
        raise CheckpointError(
            f"{metadata.path}: {prefix}.rope.dimension_count other than the head size {head_dim} "
            "(partial rotary embedding) is not supported"
        )
    theta = metadata.real(f"{prefix}.rope.freq_base", default=10_000.0)
    scaling = metadata.text(f"{prefix}.rope.scaling.type", default="linear")
    factor = metadata.find_real(f"{prefix}.rope.scaling.factor")
    if factor is None:  # the old key, from before scaling had types
        factor = metadata.real(f"{prefix}.rope.scale_linear", default=1.0)
    factor = factor or 1.0
    if scaling == "none" or (scaling == "linear" and factor == 1.0):
        return RopeConfig(theta=theta, freq_factors=freq_factors)
    if scaling == "linear":
        return RopeConfig(theta=theta, scaling=RopeScaling.LINEAR, factor=factor, freq_factors=freq_factors)
    if scaling == "yarn":
        return _read_yarn(metadata, prefix, theta, factor, freq_factors)
    raise CheckpointError(
        f"{metadata.path}: {prefix}.rope.scaling.type {shorten(scaling)} is not supported; "
        "supported: none, linear, yarn"
    )


def _read_yarn(
    metadata: Metadata, prefix: str, theta: float, factor: float, freq_factors: tuple[float, ...] | None
) -> RopeConfig:
    key = f"{prefix}.rope.scaling"
    extra = metadata.real(f"{key}.attn_factor", default=1.0)  # on top of the factor that YaRN prescribes
    if factor < 1.0:  # its logarithm is needed below
        raise CheckpointError(f"{metadata.path}: {key}.factor must be at least 1, got {factor}")
    return RopeConfig(
        theta=theta,
        scaling=RopeScaling.YARN,
        factor=factor,
        original_max_position_embeddings=metadata.integer(
            f"{key}.original_context_length", default=metadata.integer(f"{prefix}.context_length")
        ),
        beta_fast=metadata.real(f"{key}.yarn_beta_fast", default=32.0),
        beta_slow=metadata.real(f"{key}.yarn_beta_slow", default=1.0),
        attention_factor=None if extra == 1.0 else extra * (0.1 * math.log(factor) + 1.0),
        freq_factors=freq_factors,
    )
