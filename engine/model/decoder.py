"""Decoder: a decoder-only transformer in torch, norms before the blocks.

    x = embed_tokens(token_ids)  [+ embed_positions(positions)]
    x = x + attn(attn_norm(x));  x = x + mlp(mlp_norm(x))     in every layer
    logits = lm_head(norm(x))

ModelConfig says what differs between families: LayerNorm, learned positions and a plain MLP in GPT-2 (2019);
RMSNorm, rotary positions, grouped-query attention and a gated MLP in Llama (arXiv 2302.13971, 2407.21783),
Mistral and Qwen2, which has biases on q, k and v; Qwen3 norms each head's query and key.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig, Norm
from engine.model.activation import activate
from engine.model.kv_storage import KVStorage
from engine.model.linear import Linear, take_linear
from engine.model.model_input import ModelInput
from engine.model.norm import LayerNorm, RMSNorm
from engine.model.rope import Rope, rotate
from engine.model.weights import Weights

Rotation = tuple[Tensor, Tensor]
"""Cos and signed sin of a step's positions, each [num_tokens, 1, head_dim]."""


class AttentionCache(Protocol):
    """The keys and values of one layer: the one thing that a model knows of attention."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, step: ModelInput, *, scale: float
    ) -> Tensor:
        """Take in a step's keys and values, then attend each query to its sequence's, up to its own position.

        query [num_tokens, num_heads, head_dim], keys and values [num_tokens, num_kv_heads, head_dim]; returns
        [num_tokens, num_heads * head_dim].
        """


class Attention:
    """Grouped-query attention; q, k and v come from one matmul."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        hidden = config.hidden_size
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        sizes = {f"{prefix}.q_proj": q_size, f"{prefix}.k_proj": kv_size, f"{prefix}.v_proj": kv_size}
        if config.has_qkv_proj:
            sizes = {f"{prefix}.qkv_proj": q_size + 2 * kv_size}
        self.qkv_proj = take_linear(weights, sizes, hidden, bias=config.qkv_bias)
        self.o_proj = take_linear(weights, {f"{prefix}.o_proj": hidden}, q_size, bias=config.o_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            eps = config.norm_eps
            self.q_norm = RMSNorm(weights.take(f"{prefix}.q_norm.weight", config.head_dim), eps=eps)
            self.k_norm = RMSNorm(weights.take(f"{prefix}.k_norm.weight", config.head_dim), eps=eps)

    def __call__(
        self, x: Tensor, rotation: Rotation | None, layer_kv: AttentionCache, model_input: ModelInput
    ) -> Tensor:
        """Map [num_tokens, hidden_size] to the same, writing this step's keys and values."""
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # [num_tokens, q+k+v heads, head_dim]
        q_and_k, v = qkv.tensor_split((self.num_heads + self.num_kv_heads,), dim=1)
        if rotation is not None and self.q_norm is None:
            q_and_k = rotate(q_and_k, *rotation)
        q, k = q_and_k.tensor_split((self.num_heads,), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
            if rotation is not None:
                q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.o_proj(layer_kv.attend(q, k, v, model_input, scale=self.scale))


class MLP:
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation
        self.up_proj = take_linear(weights, {f"{prefix}.up_proj": inner}, hidden, bias=bias)
        self.down_proj = take_linear(weights, {f"{prefix}.down_proj": hidden}, inner, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        return self.down_proj(activate(self.up_proj(x), self.activation))


class GatedMLP:
    """down(activation(gate(x)) * up(x)); gate and up come from one matmul (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation
        sizes = {f"{prefix}.gate_proj": inner, f"{prefix}.up_proj": inner}
        self.gate_up_proj = take_linear(weights, sizes, hidden, bias=bias)
        self.down_proj = take_linear(weights, {f"{prefix}.down_proj": hidden}, inner, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(activate(gate, self.activation) * up)


class DecoderLayer:
    """One transformer layer."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.attn_norm = take_norm(config, weights, f"{prefix}.attn_norm")
        self.attn = Attention(config, weights, f"{prefix}.attn")
        self.mlp_norm = take_norm(config, weights, f"{prefix}.mlp_norm")
        self.mlp = (GatedMLP if config.is_gated else MLP)(config, weights, f"{prefix}.mlp")

    def __call__(
        self, x: Tensor, rotation: Rotation | None, layer_kv: AttentionCache, model_input: ModelInput
    ) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        x = x + self.attn(self.attn_norm(x), rotation, layer_kv, model_input)
        return x + self.mlp(self.mlp_norm(x))


class Decoder:
    """The whole model."""

    def __init__(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> None:
        self.config, self.max_positions = config, max_positions
        size = config.hidden_size
        self.embed_tokens = weights.take("embed_tokens.weight", config.vocab_size, size)
        self.embed_positions = self.rope = None
        if config.rope is None:
            positions = weights.take("embed_positions.weight", config.max_position_embeddings, size)
            self.embed_positions = positions[:max_positions]
        else:
            self.rope = Rope(
                config.rope,
                head_dim=config.head_dim,
                max_positions=max_positions,
                dtype=weights.dtype,
                device=weights.device,
            )
        self.layers = [DecoderLayer(config, weights, f"layers.{i}") for i in range(config.num_layers)]
        self.norm = take_norm(config, weights, "norm")
        is_tied = config.tie_word_embeddings
        head = self.embed_tokens if is_tied else weights.take("lm_head.weight", config.vocab_size, size)
        self.lm_head = Linear(head)

    def __call__(self, model_input: ModelInput, kv_storage: KVStorage) -> Tensor:
        """Return the last hidden states [num_tokens, hidden_size] and write this step's keys and values."""
        x, rotation = self.embed(model_input)
        for layer, layer_kv in zip(self.layers, kv_storage.layers, strict=True):
            x = layer(x, rotation, layer_kv, model_input)
        return x

    def embed(self, model_input: ModelInput) -> tuple[Tensor, Rotation | None]:
        """Return the first hidden states [num_tokens, hidden_size], and how positions rotate, if they do."""
        token_ids, positions = model_input.tensors.token_ids, model_input.tensors.positions
        x = F.embedding(token_ids, self.embed_tokens)
        if self.embed_positions is not None:
            x = x + F.embedding(positions, self.embed_positions)
        return x, None if self.rope is None else self.rope.at(positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [num_rows, hidden_size] to logits [num_rows, vocab_size]."""
        return self.lm_head(self.norm(hidden))


def take_norm(config: ModelConfig, weights: Weights, name: str) -> RMSNorm | LayerNorm:
    """Take the norm of hidden states of this name."""
    weight = weights.take(f"{name}.weight", config.hidden_size)
    if config.norm is Norm.RMS:
        return RMSNorm(weight, eps=config.norm_eps)
    return LayerNorm(weight, weights.take(f"{name}.bias", config.hidden_size), eps=config.norm_eps)
