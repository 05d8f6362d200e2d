"""config.json of a Hugging Face folder: GPT-2, Llama, Mistral, Qwen2 and Qwen3 to ModelConfig."""

import math
from pathlib import Path

from engine.checkpoint.metadata import Metadata, shorten
from engine.config import Activation, ModelConfig, RopeConfig, RopeScaling
from engine.errors import CheckpointError

MODEL_TYPES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")

_MAX_FACTOR = 1 << 20  # of rope scaling
_ORIGINAL = "original_max_position_embeddings"

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


def read_model_config(metadata: Metadata) -> ModelConfig:
    """Read config.json.

    Raises CheckpointError, or ConfigError for sizes that contradict each other, when the model is of a kind
    that is not supported.
    """
    model_type = metadata.text("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{metadata.path}: model_type {shorten(model_type)} is not supported; "
            f"supported: {', '.join(MODEL_TYPES)}"
        )
    quantization = metadata.find_section("quantization_config")
    if quantization is not None:
        method = shorten(quantization.find("quant_method"))
        raise CheckpointError(
            f"{metadata.path}: quantised weights ({method}) are not supported in this format; "
            "use the original model or a GGUF file"
        )
    return _read_gpt2(metadata) if model_type == "gpt2" else _read_llama(metadata, model_type)


def _read_gpt2(metadata: Metadata) -> ModelConfig:
    for key, neutral in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if metadata.boolean(key, default=neutral) is not neutral:
            raise CheckpointError(f"{metadata.path}: {key} = {not neutral} is not supported")
    hidden_size = metadata.integer("n_embd")
    num_heads = metadata.integer("n_head")
    return ModelConfig(
        architecture="gpt2",
        vocab_size=metadata.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=metadata.integer("n_inner", default=4 * hidden_size),
        num_layers=metadata.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_divide_heads(hidden_size, num_heads, metadata.path),
        max_position_embeddings=metadata.integer("n_positions"),
        norm_eps=metadata.real("layer_norm_epsilon", default=1e-5),
        activation=_read_activation(metadata, "activation_function", default="gelu_new"),
        rope=None,
        tie_word_embeddings=metadata.boolean("tie_word_embeddings", default=True),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


def _read_llama(metadata: Metadata, model_type: str) -> ModelConfig:
    hidden_size = metadata.integer("hidden_size")
    num_heads = metadata.integer("num_attention_heads")
    head_dim = metadata.find_integer("head_dim")
    if head_dim is None:
        head_dim = 128 if model_type == "qwen3" else _divide_heads(hidden_size, num_heads, metadata.path)
    # Qwen2 has biases on q, k and v whatever the file says; Mistral has none
    has_attention_bias = model_type in ("llama", "qwen3") and metadata.boolean(
        "attention_bias", default=False
    )
    max_positions = metadata.integer("max_position_embeddings")
    _check_sliding_window(metadata, model_type, max_positions)
    rope = _read_rope(metadata, max_positions)
    if rope.scaling is RopeScaling.YARN:  # the file may give the context before or after stretching
        max_positions = max(max_positions, int(rope.factor * rope.original_max_position_embeddings))
    return ModelConfig(
        architecture="llama",
        vocab_size=metadata.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=metadata.integer("intermediate_size"),
        num_layers=metadata.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=metadata.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        norm_eps=metadata.real("rms_norm_eps", default=1e-6),
        activation=_read_activation(metadata, "hidden_act", default="silu"),
        rope=rope,
        tie_word_embeddings=metadata.boolean("tie_word_embeddings", default=False),
        qkv_bias=has_attention_bias or model_type == "qwen2",
        o_bias=has_attention_bias,
        mlp_bias=model_type == "llama" and metadata.boolean("mlp_bias", default=False),
        qk_norm=model_type == "qwen3",
    )


def _divide_heads(hidden_size: int, num_heads: int, path: Path) -> int:
    if num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"{path}: {num_heads} heads do not divide the hidden size of {hidden_size}")
    return hidden_size // num_heads


def _read_activation(metadata: Metadata, key: str, *, default: str) -> Activation:
    name = metadata.text(key, default=default)
    if name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{metadata.path}: {key} {shorten(name)} is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _check_sliding_window(metadata: Metadata, model_type: str, max_positions: int) -> None:
    """Refuse sliding-window attention where some layer uses it and it is shorter than the context."""
    if model_type == "llama" or not _uses_sliding_window(metadata, model_type):
        return
    window = metadata.integer("sliding_window", default=0)
    if 0 < window < max_positions:
        raise CheckpointError(
            f"{metadata.path}: sliding-window attention (sliding_window = {window}, shorter than the context "
            f"of {max_positions}) is not supported"
        )


def _uses_sliding_window(metadata: Metadata, model_type: str) -> bool:
    if model_type == "mistral":
        return True
    if not metadata.boolean("use_sliding_window", default=False):
        return False
    layer_types = metadata.find_list("layer_types")
    if layer_types is not None:
        return "sliding_attention" in layer_types
    return metadata.integer("max_window_layers", default=28) < metadata.integer("num_hidden_layers")


def _read_rope(metadata: Metadata, max_positions: int) -> RopeConfig:
    """Read transformers 5's `rope_parameters` or, before it, `rope_theta` and `rope_scaling`."""
    section = metadata.find_section("rope_parameters") or metadata.find_section("rope_scaling")
    theta = metadata.real("rope_theta", default=10_000.0)
    if section is None:
        return RopeConfig(theta=theta)
    theta = section.real("rope_theta", default=theta)
    if section.real("partial_rotary_factor", default=1.0) != 1.0:
        raise CheckpointError(f"{metadata.path}: partial_rotary_factor other than 1 is not supported")
    kind = section.find_text("rope_type") or section.text("type", default="default")
    if kind == "default":
        _check_not_per_layer(section)
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, scaling=RopeScaling.LINEAR, factor=_read_factor(section))
    if kind == "llama3":
        return _read_llama3(section, theta, max_positions)
    if kind == "yarn":
        return _read_yarn(section, theta, max_positions)
    raise CheckpointError(
        f"{metadata.path}: rope scaling {shorten(kind)} is not supported; supported: linear, llama3, yarn"
    )


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


def _read_llama3(section: Metadata, theta: float, max_positions: int) -> RopeConfig:
    return RopeConfig(
        theta=theta,
        scaling=RopeScaling.LLAMA3,
        factor=_read_factor(section),
        original_max_position_embeddings=section.integer(_ORIGINAL, default=max_positions),
        low_freq_factor=section.real("low_freq_factor"),
        high_freq_factor=section.real("high_freq_factor"),
    )


def _read_yarn(section: Metadata, theta: float, max_positions: int) -> RopeConfig:
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
        original_max_position_embeddings=section.integer(_ORIGINAL, default=max_positions),
        beta_fast=section.real("beta_fast", default=32.0),
        beta_slow=section.real("beta_slow", default=1.0),
        attention_factor=attention_factor,
    )
