"""LayerTaker: a model's tensors, taken from its checkpoint as the layers that the kernels run."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation, ModelConfig, Norm
from engine.kernels.cuda.head_transform import HeadNorms
from engine.kernels.cuda.layer_weights import AnyProjection, is_kept, new_projection, take_matrix
from engine.kernels.cuda.projection_layer import NormWeights
from engine.kernels.cuda.quantized_matrix import QuantizedMatrix
from engine.model.linear import take_stacked
from engine.model.weights import Weights


@dataclass(frozen=True)
class CudaLayer:
    """One transformer layer: four products with what stands around them."""

    qkv: AnyProjection
    head_norms: HeadNorms | None
    output: AnyProjection
    up: AnyProjection  # gate and up where the MLP is gated
    down: AnyProjection


class LayerTaker:
    """Takes each tensor once; `keeps_blocks`: matrices in blocks of GGUF stay so where the kernels can."""

    def __init__(self, config: ModelConfig, weights: Weights, *, keeps_blocks: bool) -> None:
        self._config, self._weights, self._keeps_blocks = config, weights, keeps_blocks

    def layer(self, prefix: str) -> CudaLayer:
        """Take one transformer layer."""
        config, attn, mlp = self._config, f"{prefix}.attn", f"{prefix}.mlp"
        hidden, inner = config.hidden_size, config.intermediate_size
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv = {f"{attn}.q_proj": q_size, f"{attn}.k_proj": kv_size, f"{attn}.v_proj": kv_size}
        if config.has_qkv_proj:
            qkv = {f"{attn}.qkv_proj": q_size + 2 * kv_size}
        up = {f"{mlp}.up_proj": inner}
        if config.is_gated:
            up = {f"{mlp}.gate_proj": inner} | up
        return CudaLayer(
            qkv=self._projection(qkv, hidden, config.qkv_bias, norm=self.norm(f"{prefix}.attn_norm")),
            head_norms=self._head_norms(attn),
            output=self._projection({f"{attn}.o_proj": hidden}, q_size, config.o_bias),
            up=self._projection(
                up,
                hidden,
                config.mlp_bias,
                norm=self.norm(f"{prefix}.mlp_norm"),
                activation=config.activation,
                is_gated=config.is_gated,
            ),
            down=self._projection({f"{mlp}.down_proj": hidden}, inner, config.mlp_bias),
        )

    def norm(self, name: str) -> NormWeights:
        """Take the norm of hidden states of this name."""
        size = self._config.hidden_size
        weight = self._weights.take(f"{name}.weight", size)
        bias = None if self._config.norm is Norm.RMS else self._weights.take(f"{name}.bias", size)
        return NormWeights(weight, bias, self._config.norm_eps)

    def head(self, embedding: Tensor, norm: NormWeights) -> AnyProjection:
        """Take the head, float32 logits; a tied one is the embedding, T, or its blocks once more."""
        config, name = self._config, "embed_tokens" if self._config.tie_word_embeddings else "lm_head"
        found = self._weights.find(f"{name}.weight", (config.vocab_size, config.hidden_size))
        weight: Tensor | QuantizedMatrix = embedding
        if not config.tie_word_embeddings or (self._keeps_blocks and is_kept(found)):
            weight = take_matrix(
                self._weights,
                {name: config.vocab_size},
                config.hidden_size,
                num_parts=1,
                keeps_blocks=self._keeps_blocks,
            )
        return new_projection(weight, None, norm, None, is_gated=False, out_dtype=torch.float32)

    def _projection(
        self,
        sizes: Mapping[str, int],
        in_features: int,
        has_bias: bool,
        *,
        norm: NormWeights | None = None,
        activation: Activation | None = None,
        is_gated: bool = False,
    ) -> AnyProjection:
        """Take layers that share their input as one, outputs side by side."""
        weights = self._weights
        matrix = take_matrix(
            weights, sizes, in_features, num_parts=1 + is_gated, keeps_blocks=self._keeps_blocks
        )
        bias = None
        if has_bias:
            bias = take_stacked(weights, {f"{name}.bias": size for name, size in sizes.items()})
        return new_projection(matrix, bias, norm, activation, is_gated=is_gated, out_dtype=weights.dtype)

    def _head_norms(self, prefix: str) -> HeadNorms | None:
        config = self._config
        if not config.qk_norm:
            return None
        names = (f"{prefix}.{name}_norm.weight" for name in "qk")
        query, key = (self._weights.take(name, config.head_dim) for name in names)
        return HeadNorms(query, key, config.norm_eps)
