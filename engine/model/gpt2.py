"""GPT-2 and nanoGPT: learned positions, LayerNorm with bias, GELU, multi-head attention.

x = embed_tokens(token_ids) + embed_positions(positions)
x = x + attn(attn_norm(x));  x = x + mlp(mlp_norm(x))     in every layer
logits = lm_head(norm(x))
"""

import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.model.activation import activate
from engine.model.kv_storage import KVStorage, LayerKV
from engine.model.linear import Linear, take_linear
from engine.model.model_input import ModelInput
from engine.model.norm import LayerNorm
from engine.model.weights import Weights


class GPT2Attention:
    """Multi-head attention; q, k and v come from one matmul, as the checkpoint stores them."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        size = config.hidden_size
        self.qkv_proj = take_linear(weights, (f"{prefix}.qkv_proj",), size, (3 * size,), bias=config.qkv_bias)
        self.o_proj = take_linear(weights, (f"{prefix}.o_proj",), size, (size,), bias=config.o_bias)

    def __call__(self, x: Tensor, layer_kv: LayerKV, model_input: ModelInput) -> Tensor:
        """Map [num_tokens, hidden_size] to the same, writing this step's keys and values."""
        q, k, v = self.qkv_proj(x).view(len(x), -1, self.head_dim).chunk(3, dim=1)
        return self.o_proj(layer_kv.attend(q, k, v, model_input, scale=self.scale))


class GPT2MLP:
    """down(gelu(up(x)))."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = take_linear(weights, (f"{prefix}.up_proj",), hidden, (inner,), bias=bias)
        self.down_proj = take_linear(weights, (f"{prefix}.down_proj",), inner, (hidden,), bias=bias)
        self.activation = config.activation

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        return self.down_proj(activate(self.up_proj(x), self.activation))


class GPT2Layer:
    """One transformer layer, norms before the blocks."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.attn_norm = take_layer_norm(weights, f"{prefix}.attn_norm", config)
        self.attn = GPT2Attention(config, weights, f"{prefix}.attn")
        self.mlp_norm = take_layer_norm(weights, f"{prefix}.mlp_norm", config)
        self.mlp = GPT2MLP(config, weights, f"{prefix}.mlp")

    def __call__(self, x: Tensor, layer_kv: LayerKV, model_input: ModelInput) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        x = x + self.attn(self.attn_norm(x), layer_kv, model_input)
        return x + self.mlp(self.mlp_norm(x))


class GPT2:
    """Decoder-only transformer as in "Language Models are Unsupervised Multitask Learners" (2019)."""

    def __init__(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> None:
        self.config, self.max_positions = config, max_positions
        size = config.hidden_size
        self.embed_tokens = weights.take("embed_tokens.weight", config.vocab_size, size)
        positions = weights.take("embed_positions.weight", config.max_position_embeddings, size)
        self.embed_positions = positions[:max_positions]
        self.layers = [GPT2Layer(config, weights, f"layers.{i}") for i in range(config.num_layers)]
        self.norm = take_layer_norm(weights, "norm", config)
        self.lm_head = Linear(
            self.embed_tokens
            if config.tie_word_embeddings
            else weights.take("lm_head.weight", config.vocab_size, size)
        )

    def __call__(self, model_input: ModelInput, kv_storage: KVStorage) -> Tensor:
        """Return the last hidden states [num_tokens, hidden_size] and write this step's keys and values."""
        x = F.embedding(model_input.tensors.token_ids, self.embed_tokens)
        x = x + F.embedding(model_input.tensors.positions, self.embed_positions)
        for layer, layer_kv in zip(self.layers, kv_storage.layers, strict=True):
            x = layer(x, layer_kv, model_input)
        return x

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [num_rows, hidden_size] to logits [num_rows, vocab_size]."""
        return self.lm_head(self.norm(hidden))


def take_layer_norm(weights: Weights, name: str, config: ModelConfig) -> LayerNorm:
    """Take the weight and bias of a LayerNorm over the hidden size."""
    size = config.hidden_size
    weight, bias = weights.take(f"{name}.weight", size), weights.take(f"{name}.bias", size)
    return LayerNorm(weight, bias, eps=config.norm_eps)
