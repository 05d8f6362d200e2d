"""Llama 1 to 3 and SmolLM2, and what Mistral and Qwen have in common with them."""

from dataclasses import replace

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.fields import divide_heads, read_activation
from engine.checkpoint.gguf_config import GGUFHeader, read_gguf_rope, read_sizes
from engine.checkpoint.huggingface_rope import read_rope
from engine.checkpoint.metadata import Metadata
from engine.checkpoint.model_config import ModelConfig, RopeScaling
from engine.checkpoint.names import TensorNames

SHARED_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
OPTIONAL_FIELDS = frozenset(
    {"attention_bias", "mlp_bias", "num_key_value_heads", "head_dim", "use_sliding_window"}
    | {"sliding_window", "original_max_position_embeddings"}
)
TENSOR_NAMES = TensorNames(
    prefix="model.",
    layer_prefix="layers",
    top={"embed_tokens": "embed_tokens", "norm": "norm", "lm_head": "lm_head"},
    layer={
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn.q_proj",
        "self_attn.k_proj": "attn.k_proj",
        "self_attn.v_proj": "attn.v_proj",
        "self_attn.o_proj": "attn.o_proj",
        "self_attn.q_norm": "attn.q_norm",
        "self_attn.k_norm": "attn.k_norm",
        "post_attention_layernorm": "mlp_norm",
        "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.up_proj",
        "mlp.down_proj": "mlp.down_proj",
    },
)


def read_llama_config(metadata: Metadata, name: str) -> ModelConfig:
    """Read the configuration of a model of the Llama family, without biases and norms of heads."""
    hidden_size = metadata.integer("hidden_size")
    num_heads = metadata.integer("num_attention_heads")
    head_dim = metadata.find_integer("head_dim")
    if head_dim is None:
        head_dim = divide_heads(hidden_size, num_heads, metadata.path)
    max_positions = metadata.integer("max_position_embeddings")
    rope = read_rope(metadata, max_positions)
    if rope.scaling is RopeScaling.YARN:  # the file may give the context before or after stretching
        max_positions = max(max_positions, int(rope.factor * rope.original_max_position_embeddings))
    return ModelConfig(
        architecture=name,
        vocab_size=metadata.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=metadata.integer("intermediate_size"),
        num_layers=metadata.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=metadata.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        norm_eps=metadata.real("rms_norm_eps"),
        activation=read_activation(metadata, "hidden_act"),
        rope=rope,
        tie_word_embeddings=metadata.boolean("tie_word_embeddings", default=False),
    )


def with_attention_bias(config: ModelConfig, metadata: Metadata) -> ModelConfig:
    """Add biases to all projections of attention if `attention_bias` says so."""
    has_bias = metadata.boolean("attention_bias", default=False)
    return replace(config, qkv_bias=has_bias, o_bias=has_bias)


def read_llama_gguf_config(header: GGUFHeader) -> ModelConfig:
    """Read a model of the Llama family; it has the biases and norms of heads whose tensors are there."""
    config = read_sizes(header, norm_eps="attention.layer_norm_rms_epsilon")
    return replace(
        config,
        rope=read_gguf_rope(header, config.head_dim),
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_down.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
    )


def _read_config(metadata: Metadata) -> ModelConfig:
    config = with_attention_bias(read_llama_config(metadata, LLAMA.name), metadata)
    return replace(config, mlp_bias=metadata.boolean("mlp_bias", default=False))


LLAMA = Architecture(
    name="llama",
    read_config=_read_config,
    read_gguf_config=read_llama_gguf_config,
    tensor_names=TENSOR_NAMES,
    field_defaults={
        **SHARED_DEFAULTS,
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
    },
    optional_fields=OPTIONAL_FIELDS,
    has_interleaved_heads=True,
)
