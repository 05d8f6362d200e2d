"""What a field means that config.json leaves out: the default of the family's configuration class.

transformers writes a whole configuration, other programs leave out what equals the class's default, so an
absent field and a null one differ: `sliding_window` of a Mistral is 4,096 when absent and off when null.
The values are those of transformers 5 (`LlamaConfig`, `GPT2Config`, ...), and a test compares them.
"""

from collections.abc import Mapping

from engine.checkpoint.metadata import Metadata

_SHARED: Mapping[str, object] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_QWEN: Mapping[str, object] = {
    **_SHARED,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "gpt2": {
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    "llama": {
        **_SHARED,
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        **_SHARED,
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""Fields whose default is neither null nor false; of the others null, false and absent mean the same."""

MODEL_TYPES = tuple(_DEFAULTS)

_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Names that GPT2Config takes, too; where a file has both, these win."""

_OPTIONAL = {
    True: frozenset({"n_inner", "scale_attn_by_inverse_layer_idx", "add_cross_attention", *_GPT2_ALIASES}),
    False: frozenset(
        {"attention_bias", "mlp_bias", "num_key_value_heads", "head_dim", "use_sliding_window"}
        | {"sliding_window", "original_max_position_embeddings"}
    ),
}
"""Fields that are read and have no default, of GPT-2 and of the Llama family."""


def known_fields(model_type: str) -> frozenset[str]:
    """Return the fields of config.json that are read for a family."""
    return _OPTIONAL[model_type == "gpt2"] | frozenset(_DEFAULTS[model_type])


def with_family_defaults(metadata: Metadata, model_type: str) -> Metadata:
    """Return the fields of a config.json with the family's defaults in the place of absent ones."""
    values = {**_DEFAULTS[model_type], **metadata.values}
    if model_type == "gpt2":
        values |= {name: values[alias] for alias, name in _GPT2_ALIASES.items() if alias in values}
    return Metadata(values, path=metadata.path)
