"""Shapes of models: small ones whose every path runs, and three whose speed is known."""

from collections.abc import Mapping
from dataclasses import replace

from engine.checkpoint.model_config import Activation, ModelConfig, RopeConfig
from tests import tiny

END = 255  # the token that ends answers: a byte that no text has

_LLAMA = ModelConfig(
    architecture="llama",
    vocab_size=2048,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=4,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position_embeddings=4096,
    norm_eps=1e-5,
    activation=Activation.SILU,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)

SMALL: Mapping[str, ModelConfig] = {
    "llama": _LLAMA,
    "gpt2": replace(
        tiny.GPT2,
        vocab_size=2000,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=3,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        max_position_embeddings=1024,
    ),
    "qwen3": replace(
        _LLAMA,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=3,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        qk_norm=True,
        norm_eps=1e-6,
    ),
    "qwen2": replace(
        _LLAMA,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=3,
        num_heads=14,
        num_kv_heads=2,
        qkv_bias=True,
        tie_word_embeddings=False,
    ),
}
"""Gated and plain MLPs, RMSNorm and LayerNorm, rotary and learned positions, biases, q/k norms."""

LARGE: Mapping[str, ModelConfig] = {
    "135m": replace(_LLAMA, num_layers=30, vocab_size=49_152),
    "0.6b": replace(
        _LLAMA,
        architecture="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        qk_norm=True,
        norm_eps=1e-6,
    ),
    "8b": replace(
        _LLAMA,
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}
"""SmolLM2-135M, Qwen3-0.6B and Llama-3.1-8B."""


def shrunk(config: ModelConfig) -> ModelConfig:
    """Return the shape for a rehearsal: the same kind of model, a thousandth of its size."""
    return replace(
        config,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if config.num_kv_heads == config.num_heads else 2,
        head_dim=16,
        max_position_embeddings=512,
    )
