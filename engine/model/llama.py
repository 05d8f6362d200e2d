"""The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2 and Qwen3.

    x = embed_tokens(token_ids)
    x = x + attn(attn_norm(x));  x = x + mlp(mlp_norm(x))     in every layer
    logits = lm_head(norm(x))

RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU. Qwen2 has biases on q, k
and v, Qwen3 norms each head's query and key. (arXiv 2302.13971, 2407.21783)
"""

import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.model.activation import activate
from engine.model.kv_storage import KVStorage, LayerKV
from engine.model.linear import Linear, take_linear
from engine.model.model_input import ModelInput
from engine.model.norm import RMSNorm
from engine.model.rope import Rope, rotate
from engine.model.weights import Weights


class LlamaAttention:
    """Grouped-query attention with rotary positions; q, k and v come from one fused matmul."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        names = (f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj")
        sizes = (q_size, kv_size, kv_size)
        self.qkv_proj = take_linear(weights, names, config.hidden_size, sizes, bias=config.qkv_bias)
        self.o_proj = take_linear(
            weights, (f"{prefix}.o_proj",), q_size, (config.hidden_size,), bias=config.o_bias
        )
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            eps = config.norm_eps
            self.q_norm = RMSNorm(weights.take(f"{prefix}.q_norm.weight", config.head_dim), eps=eps)
            self.k_norm = RMSNorm(weights.take(f"{prefix}.k_norm.weight", config.head_dim), eps=eps)

    def __call__(
        self, x: Tensor, cos: Tensor, signed_sin: Tensor, layer_kv: LayerKV, model_input: ModelInput
    ) -> Tensor:
        """Map [num_tokens, hidden_size] to the same, writing this step's keys and values."""
        qkv = self.qkv_proj(x).view(len(x), -1, self.head_dim)  # [num_tokens, q+k+v heads, head_dim]
        q_and_k, v = qkv.tensor_split((self.num_heads + self.num_kv_heads,), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = q_and_k.tensor_split((self.num_heads,), dim=1)
            q, k = rotate(self.q_norm(q), cos, signed_sin), rotate(self.k_norm(k), cos, signed_sin)
        else:
            q, k = rotate(q_and_k, cos, signed_sin).tensor_split((self.num_heads,), dim=1)
        return self.o_proj(layer_kv.attend(q, k, v, model_input, scale=self.scale))


class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate and up come from one fused matmul (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation = config.activation
        names = (f"{prefix}.gate_proj", f"{prefix}.up_proj")
        self.gate_up_proj = take_linear(weights, names, hidden, (inner, inner), bias=config.mlp_bias)
        self.down_proj = take_linear(
            weights, (f"{prefix}.down_proj",), inner, (hidden,), bias=config.mlp_bias
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(activate(gate, self.activation) * up)


class LlamaLayer:
    """One transformer layer, norms before the blocks."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        size, eps = config.hidden_size, config.norm_eps
        self.attn_norm = RMSNorm(weights.take(f"{prefix}.attn_norm.weight", size), eps=eps)
        self.attn = LlamaAttention(config, weights, f"{prefix}.attn")
        self.mlp_norm = RMSNorm(weights.take(f"{prefix}.mlp_norm.weight", size), eps=eps)
        self.mlp = GatedMLP(config, weights, f"{prefix}.mlp")

    def __call__(
        self, x: Tensor, cos: Tensor, signed_sin: Tensor, layer_kv: LayerKV, model_input: ModelInput
    ) -> Tensor:
        """Map [num_tokens, hidden_size] to the same."""
        x = x + self.attn(self.attn_norm(x), cos, signed_sin, layer_kv, model_input)
        return x + self.mlp(self.mlp_norm(x))


class Llama:
    """Decoder-only transformer of the Llama family."""

    def __init__(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> None:
        assert config.rope is not None, "the Llama family has rotary positions"
        self.config, self.max_positions = config, max_positions
        self.embed_tokens = weights.take("embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.layers = [LlamaLayer(config, weights, f"layers.{i}") for i in range(config.num_layers)]
        self.norm = RMSNorm(weights.take("norm.weight", config.hidden_size), eps=config.norm_eps)
        self.lm_head = Linear(
            self.embed_tokens
            if config.tie_word_embeddings
            else weights.take("lm_head.weight", config.vocab_size, config.hidden_size)
        )
        self.rope = Rope(
            config.rope,
            head_dim=config.head_dim,
            max_positions=max_positions,
            dtype=weights.dtype,
            device=weights.device,
        )

    def __call__(self, model_input: ModelInput, kv_storage: KVStorage) -> Tensor:
        """Return the last hidden states [num_tokens, hidden_size] and write this step's keys and values."""
        x = F.embedding(model_input.tensors.token_ids, self.embed_tokens)
        cos, signed_sin = self.rope.at(model_input.tensors.positions)
        for layer, layer_kv in zip(self.layers, kv_storage.layers, strict=True):
            x = layer(x, cos, signed_sin, layer_kv, model_input)
        return x

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [num_rows, hidden_size] to logits [num_rows, vocab_size]."""
        return self.lm_head(self.norm(hidden))
