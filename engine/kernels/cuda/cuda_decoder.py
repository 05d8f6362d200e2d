"""CudaDecoder: the model of engine/model/decoder.py as kernels over tensors that stay where they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.kernels.cuda.head_transform import RotaryTables
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.layer_taker import LayerTaker
from engine.kernels.cuda.layer_weights import AnyProjection
from engine.kernels.cuda.paged_kv_storage import PagedKVStorage
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.workspace import MAX_ROWS_OF_BLOCKS, Workspaces
from engine.model.rope import Rope
from engine.model.weights import Weights


class HiddenBuffers:
    """What lies between the kernels of a step, of a model in dtype T."""

    def __init__(
        self, config: ModelConfig, *, max_tokens: int, max_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        query_size = config.num_heads * config.head_dim
        self.hidden = empty(max_tokens, config.hidden_size)
        self.between = empty(max_tokens, config.hidden_size)
        self.qkv = empty(max_tokens, query_size + 2 * config.num_kv_heads * config.head_dim)
        self.query = empty(max_tokens, config.num_heads, config.head_dim)
        self.attended = empty(max_tokens, query_size)
        self.inner = empty(max_tokens, config.intermediate_size)
        self.rows = empty(max_rows, config.hidden_size)
        self.logits = torch.zeros(max_rows, config.vocab_size, dtype=torch.float32, device=device)


class CudaDecoder:
    """A decoder-only transformer in the CUDA kernels, or in their twins: `kernels` says which."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        max_positions: int,
        kernels: Kernels,
        keeps_blocks: bool = False,
    ) -> None:
        self.config, self.max_positions, self.dtype = config, max_positions, weights.dtype
        self.scale = config.head_dim**-0.5
        self._kernels = kernels
        self.embed_tokens = weights.take("embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.embed_positions: Tensor | None = None
        self.rotary: RotaryTables | None = None
        if config.rope is None:
            shape = (config.max_position_embeddings, config.hidden_size)
            self.embed_positions = weights.take("embed_positions.weight", *shape)[:max_positions]
        else:
            rope = Rope(
                config.rope,
                head_dim=config.head_dim,
                max_positions=max_positions,
                dtype=torch.float32,
                device=weights.device,
            )
            self.rotary = RotaryTables(rope.cos, rope.signed_sin)
        take = LayerTaker(config, weights, keeps_blocks=keeps_blocks)
        self.layers = [take.layer(f"layers.{i}") for i in range(config.num_layers)]
        self.norm = take.norm("norm")
        self.head = take.head(self.embed_tokens, self.norm)
        self.may_use_library: Callable[[Projection], bool] = lambda _: False

    @property
    def projections(self) -> list[AnyProjection]:
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
        projection: AnyProjection,
        x: Tensor,
        out: Tensor,
        workspaces: Workspaces,
        residual: Tensor | None = None,
    ) -> None:
        """Multiply; blocks are widened first where many rows use them, to the same bits."""
        workspace = workspaces.projection
        if isinstance(projection, QuantizedProjection):
            plain = workspaces.widened(projection) if len(x) > MAX_ROWS_OF_BLOCKS else None
            if plain is None:
                self._kernels.project_quantized(projection, x, out, workspace, residual=residual)
                return
            self._kernels.dequantize(projection.weight, plain.weight)
            projection = plain
        is_exact = self.may_use_library(projection)
        self._kernels.project(projection, x, out, workspace, residual=residual, exact_library=is_exact)
