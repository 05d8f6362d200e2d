"""CudaDecoder: the model of engine/model/decoder.py as kernels over tensors that stay where they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig, Norm
from engine.kernels.cuda.head_transform import HeadNorms, RotaryTables
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.paged_kv_storage import PagedKVStorage
from engine.kernels.cuda.projection_layer import NormWeights, Projection
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.workspace import Workspaces
from engine.model.rope import Rope
from engine.model.weights import Weights


@dataclass(frozen=True)
class CudaLayer:
    """One transformer layer: four products with what stands around them."""

    qkv: Projection
    head_norms: HeadNorms | None
    output: Projection
    up: Projection  # gate and up where the MLP is gated
    down: Projection


class HiddenBuffers:
    """What lies between the kernels of a step, of a model in dtype T."""

    def __init__(
        self, config: ModelConfig, *, max_tokens: int, max_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        query_size = config.num_heads * config.head_dim
        self.hidden, self.between = (
            empty(max_tokens, config.hidden_size),
            empty(max_tokens, config.hidden_size),
        )
        self.qkv = empty(max_tokens, query_size + 2 * config.num_kv_heads * config.head_dim)
        self.query = empty(max_tokens, config.num_heads, config.head_dim)
        self.attended = empty(max_tokens, query_size)
        self.inner = empty(max_tokens, config.intermediate_size)
        self.rows = empty(max_rows, config.hidden_size)
        self.logits = torch.zeros(max_rows, config.vocab_size, dtype=torch.float32, device=device)


class CudaDecoder:
    """A decoder-only transformer in the CUDA kernels, or in their twins: `kernels` says which."""

    def __init__(
        self, config: ModelConfig, weights: Weights, *, max_positions: int, kernels: Kernels
    ) -> None:
        self.config, self.max_positions, self.dtype = config, max_positions, weights.dtype
        self.scale = config.head_dim**-0.5
        self._kernels = kernels
        size = config.hidden_size
        self.embed_tokens = weights.take("embed_tokens.weight", config.vocab_size, size)
        self.embed_positions: Tensor | None = None
        self.rotary: RotaryTables | None = None
        if config.rope is None:
            positions = weights.take("embed_positions.weight", config.max_position_embeddings, size)
            self.embed_positions = positions[:max_positions]
        else:
            rope = Rope(
                config.rope,
                head_dim=config.head_dim,
                max_positions=max_positions,
                dtype=torch.float32,
                device=weights.device,
            )
            self.rotary = RotaryTables(rope.cos, rope.signed_sin)
        self.layers = [take_layer(config, weights, f"layers.{i}") for i in range(config.num_layers)]
        is_tied = config.tie_word_embeddings
        head = self.embed_tokens if is_tied else weights.take("lm_head.weight", config.vocab_size, size)
        self.norm = take_norm(config, weights, "norm")
        self.head = Projection(head, None, self.norm, None, False, torch.float32)
        self.may_use_library: Callable[[Projection], bool] = lambda _: False

    @property
    def projections(self) -> list[Projection]:
        """Every product of a step."""
        layers = [(layer.qkv, layer.output, layer.up, layer.down) for layer in self.layers]
        return [*(projection for layer in layers for projection in layer), self.head]

    def forward(
        self,
        shape: StepShape,
        *,
        buffers: StepBuffers,
        state: RequestState,
        kv_storage: PagedKVStorage,
        hidden: HiddenBuffers,
        workspaces: Workspaces,
    ) -> None:
        """Run a step's tokens: writes keys and values, hidden.hidden, and hidden.logits of the rows."""
        count = shape.num_tokens
        x, between = hidden.hidden[:count], hidden.between[:count]
        self._kernels.embed(
            buffers.token_ids, buffers.positions, self.embed_tokens, self.embed_positions, x, num_tokens=count
        )
        for layer, (keys, values) in zip(self.layers, kv_storage.layers, strict=True):
            self._project(layer.qkv, x, hidden.qkv[:count], workspaces)
            self._kernels.write_kv(
                hidden.qkv[:count],
                self.rotary,
                layer.head_norms,
                buffers,
                state,
                keys,
                values,
                hidden.query[:count],
                num_tokens=count,
                num_heads=self.config.num_heads,
            )
            self._kernels.attend(
                hidden.query[:count],
                keys,
                values,
                buffers,
                state,
                hidden.attended[:count],
                shape,
                workspaces.attention,
                scale=self.scale,
            )
            self._project(layer.output, hidden.attended[:count], between, workspaces, residual=x)
            self._project(layer.up, between, hidden.inner[:count], workspaces)
            self._project(layer.down, hidden.inner[:count], x, workspaces, residual=between)
        if shape.num_rows:
            self._logits(shape, buffers, hidden, workspaces)

    def _logits(
        self, shape: StepShape, buffers: StepBuffers, hidden: HiddenBuffers, workspaces: Workspaces
    ) -> None:
        rows = hidden.hidden[: shape.num_rows]
        if shape.num_rows != shape.num_tokens:
            rows = hidden.rows[: shape.num_rows]
            self._kernels.take_rows(hidden.hidden, buffers.row_tokens[: shape.num_rows], rows)
        self.compute_logits(rows, hidden.logits[: shape.num_rows], workspaces)

    def compute_logits(self, rows: Tensor, logits: Tensor, workspaces: Workspaces) -> None:
        """Map hidden states T [num_rows, hidden_size] to float32 [num_rows, vocab_size]."""
        self._project(self.head, rows, logits, workspaces)

    def _project(
        self,
        projection: Projection,
        x: Tensor,
        out: Tensor,
        workspaces: Workspaces,
        residual: Tensor | None = None,
    ) -> None:
        self._kernels.project(
            projection,
            x,
            out,
            workspaces.projection,
            residual=residual,
            exact_library=self.may_use_library(projection),
        )


def take_layer(config: ModelConfig, weights: Weights, prefix: str) -> CudaLayer:
    """Take the tensors of one layer."""
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attn = f"{prefix}.attn"
    qkv = {f"{attn}.q_proj": q_size, f"{attn}.k_proj": kv_size, f"{attn}.v_proj": kv_size}
    if config.has_qkv_proj:
        qkv = {f"{attn}.qkv_proj": q_size + 2 * kv_size}
    up = {f"{prefix}.mlp.up_proj": inner}
    if config.is_gated:
        up = {f"{prefix}.mlp.gate_proj": inner} | up
    attn_norm = take_norm(config, weights, f"{prefix}.attn_norm")
    mlp_norm = take_norm(config, weights, f"{prefix}.mlp_norm")
    dtype, down = weights.dtype, {f"{prefix}.mlp.down_proj": hidden}
    return CudaLayer(
        qkv=Projection(*_take(weights, qkv, hidden, config.qkv_bias), attn_norm, None, False, dtype),
        head_norms=_take_head_norms(config, weights, attn),
        output=Projection(
            *_take(weights, {f"{attn}.o_proj": hidden}, q_size, config.o_bias), None, None, False, dtype
        ),
        up=Projection(*_take(weights, up, hidden, bias), mlp_norm, config.activation, config.is_gated, dtype),
        down=Projection(*_take(weights, down, inner, bias), None, None, False, dtype),
    )


def take_norm(config: ModelConfig, weights: Weights, name: str) -> NormWeights:
    """Take the norm of hidden states of this name."""
    weight = weights.take(f"{name}.weight", config.hidden_size)
    bias = None if config.norm is Norm.RMS else weights.take(f"{name}.bias", config.hidden_size)
    return NormWeights(weight, bias, config.norm_eps)


def _take_head_norms(config: ModelConfig, weights: Weights, prefix: str) -> HeadNorms | None:
    if not config.qk_norm:
        return None
    query, key = (weights.take(f"{prefix}.{name}_norm.weight", config.head_dim) for name in "qk")
    return HeadNorms(query, key, config.norm_eps)


def _take(
    weights: Weights, sizes: Mapping[str, int], in_features: int, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Take layers that share their input as one matrix, outputs side by side, and its bias."""
    matrices = [weights.take(f"{name}.weight", size, in_features) for name, size in sizes.items()]
    weight = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
    if not has_bias:
        return weight, None
    return weight, torch.cat([weights.take(f"{name}.bias", size) for name, size in sizes.items()])
