"""GPT-2: learned positions, LayerNorm, GELU, biases everywhere, q, k and v stored as one matrix."""

from dataclasses import replace

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.fields import divide_heads, read_activation
from engine.checkpoint.gguf_config import GGUFHeader, read_sizes
from engine.checkpoint.metadata import Metadata
from engine.checkpoint.model_config import Activation, ModelConfig, Norm
from engine.checkpoint.names import TensorNames
from engine.interface.errors import CheckpointError

_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Names that GPT2Config takes, too; where a file has both, these win."""

_NEUTRAL = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def with_gpt2_layers(sizes: ModelConfig) -> ModelConfig:
    """Return a GPT-2 of these sizes."""
    return replace(
        sizes,
        norm=Norm.LAYER,
        is_gated=False,
        has_qkv_proj=True,
        rope=None,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    )


def _read_config(metadata: Metadata) -> ModelConfig:
    values = metadata.values
    aliased = {name: values[alias] for alias, name in _ALIASES.items() if alias in values}
    fields = Metadata({**values, **aliased}, path=metadata.path)
    for key, neutral in _NEUTRAL.items():
        if fields.boolean(key, default=False) is not neutral:
            raise CheckpointError(f"{fields.path}: {key} = {not neutral} is not supported")
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    sizes = ModelConfig(
        architecture=GPT2.name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("n_inner", default=4 * hidden_size),
        num_layers=fields.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=divide_heads(hidden_size, num_heads, fields.path),
        max_position_embeddings=fields.integer("n_positions"),
        norm_eps=fields.real("layer_norm_epsilon"),
        activation=read_activation(fields, "activation_function"),
        rope=None,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
    )
    return with_gpt2_layers(sizes)


def _read_gguf_config(header: GGUFHeader) -> ModelConfig:
    sizes = read_sizes(header, norm_eps="attention.layer_norm_epsilon")
    return with_gpt2_layers(replace(sizes, activation=Activation.GELU_TANH))


GPT2 = Architecture(
    name="gpt2",
    read_config=_read_config,
    read_gguf_config=_read_gguf_config,
    tensor_names=TensorNames(
        prefix="transformer.",
        layer_prefix="h",
        top={"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm", "lm_head": "lm_head"},
        layer={
            "ln_1": "attn_norm",
            "attn.c_attn": "attn.qkv_proj",
            "attn.c_proj": "attn.o_proj",
            "ln_2": "mlp_norm",
            "mlp.c_fc": "mlp.up_proj",
            "mlp.c_proj": "mlp.down_proj",
        },
    ),
    field_defaults={
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
    optional_fields=frozenset(
        {"n_inner", "scale_attn_by_inverse_layer_idx", "add_cross_attention", *_ALIASES}
    ),
    neutral_fields=dict.fromkeys(("attention_bias", "mlp_bias"), (0.0, False)),
    transposed_weights=(  # transformers' Conv1D
        "attn.qkv_proj.weight",
        "attn.o_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ),
    pre_tokenizer="gpt-2",
)
