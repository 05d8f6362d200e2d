"""config.json of a Hugging Face folder: GPT-2, Llama, Mistral, Qwen2 and Qwen3 to ModelConfig."""

from pathlib import Path

from engine.checkpoint.foreign_fields import check_foreign_fields
from engine.checkpoint.huggingface_defaults import MODEL_TYPES, with_family_defaults
from engine.checkpoint.huggingface_rope import read_rope
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import Activation, ModelConfig, Norm, RopeScaling
from engine.interface.errors import CheckpointError

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


def read_model_config(metadata: Metadata) -> ModelConfig:
    """Read config.json; a field that it leaves out has the default of the family's configuration class.

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
    complete = with_family_defaults(metadata, model_type)
    config = _read_gpt2(complete) if model_type == "gpt2" else _read_llama(complete, model_type)
    check_foreign_fields(metadata, model_type, config)
    return config


def _read_gpt2(metadata: Metadata) -> ModelConfig:
    for key, neutral in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if metadata.boolean(key, default=False) is not neutral:
            raise CheckpointError(f"{metadata.path}: {key} = {not neutral} is not supported")
    hidden_size = metadata.integer("n_embd")
    num_heads = metadata.integer("n_head")
    return ModelConfig(
        architecture="gpt2",
        norm=Norm.LAYER,
        is_gated=False,
        has_qkv_proj=True,
        vocab_size=metadata.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=metadata.integer("n_inner", default=4 * hidden_size),
        num_layers=metadata.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_divide_heads(hidden_size, num_heads, metadata.path),
        max_position_embeddings=metadata.integer("n_positions"),
        norm_eps=metadata.real("layer_norm_epsilon"),
        activation=_read_activation(metadata, "activation_function"),
        rope=None,
        tie_word_embeddings=metadata.boolean("tie_word_embeddings", default=False),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


def _read_llama(metadata: Metadata, model_type: str) -> ModelConfig:
    hidden_size = metadata.integer("hidden_size")
    num_heads = metadata.integer("num_attention_heads")
    head_dim = metadata.find_integer("head_dim")
    if head_dim is None:
        head_dim = _divide_heads(hidden_size, num_heads, metadata.path)
    # Qwen2 has biases on q, k and v whatever the file says; Mistral has none
    has_attention_bias = model_type in ("llama", "qwen3") and metadata.boolean(
        "attention_bias", default=False
    )
    max_positions = metadata.integer("max_position_embeddings")
    rope = read_rope(metadata, max_positions)
    if rope.scaling is RopeScaling.YARN:  # the file may give the context before or after stretching
        max_positions = max(max_positions, int(rope.factor * rope.original_max_position_embeddings))
    _check_sliding_window(metadata, model_type, max_positions)
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
        norm_eps=metadata.real("rms_norm_eps"),
        activation=_read_activation(metadata, "hidden_act"),
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


def _read_activation(metadata: Metadata, key: str) -> Activation:
    name = metadata.text(key)
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
            f"of {max_positions}; where the field is absent {model_type} has 4096) "
            f"is not supported; to serve the first {window} positions set max_position_embeddings to {window}"
        )


def _uses_sliding_window(metadata: Metadata, model_type: str) -> bool:
    if model_type == "mistral":
        return True
    has_window = metadata.boolean("use_sliding_window", default=False) and "sliding_window" in metadata
    num_layers = metadata.integer("num_hidden_layers")
    layer_types = metadata.find_list("layer_types")
    if layer_types is None:
        return has_window and metadata.integer("max_window_layers") < num_layers
    _check_layer_types(metadata, layer_types, num_layers)
    is_sliding = "sliding_attention" in layer_types
    if is_sliding and not has_window:
        raise CheckpointError(
            f"{metadata.path}: layer_types has sliding_attention, but there is no window: use_sliding_window "
            "must be true and sliding_window a number, or every layer full_attention"
        )
    return is_sliding


def _check_layer_types(metadata: Metadata, layer_types: list[object], num_layers: int) -> None:
    if len(layer_types) != num_layers:
        raise CheckpointError(
            f"{metadata.path}: layer_types must have {num_layers} entries, one per layer, "
            f"got {len(layer_types)}"
        )
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(
                f"{metadata.path}: layer_types {shorten(kind)} is not supported; supported: full_attention"
            )
