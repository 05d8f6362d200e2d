"""FusedDecoder: a whole step of GPT-2 or the Llama family in one call of the CPU kernels.

It computes what engine/model/decoder.py computes, which is its slow twin: the same phases, hidden
states in float32 throughout, and matrices as the checkpoint stores them.
"""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation, ModelConfig, Norm
from engine.kernels.cpu.library import ActivationKind, KernelContext, Layer, Model, NormKind, RowsFormat
from engine.kernels.cpu.packing import (
    BLOCK,
    Arena,
    FormatRule,
    PackedMatrix,
    in_order,
    pack,
    padded_heads,
    read_rows,
    tiles_in_turn,
)
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.model.model_input import ModelInput
from engine.model.norm import LayerNorm, RMSNorm
from engine.model.rope import Rope
from engine.model.weights import Weights

MAX_HEAD_DIM = 256

_ACTIVATIONS = {
    Activation.SILU: ActivationKind.SILU,
    Activation.GELU: ActivationKind.GELU,
    Activation.GELU_TANH: ActivationKind.GELU_TANH,
}


def why_not_fused(config: ModelConfig) -> str | None:
    """Say why the kernels cannot run a model of this shape; None if they can."""
    if config.head_dim > MAX_HEAD_DIM:
        return f"its heads of {config.head_dim} dimensions are longer than {MAX_HEAD_DIM}"
    return None


@dataclass(frozen=True, slots=True)
class StepArrays:
    """A step's tokens int64 [num_tokens], struct Span [num_spans], and block tables int32.

    ctypes arrays: for the few numbers of a decode step they cost a third of numpy's.
    """

    num_tokens: int
    num_spans: int
    token_ids: "ctypes.Array[ctypes.c_int64]"
    spans: "ctypes.Array[ctypes.c_int32]"
    block_tables: "ctypes.Array[ctypes.c_int32]"

    @property
    def arguments(self) -> tuple[object, ...]:
        """The order in which every call of the kernels takes them."""
        return self.token_ids, self.num_tokens, self.spans, self.num_spans, self.block_tables


class FusedDecoder:
    """A decoder-only transformer in the CPU kernels; the model runner sees a Model like any other.

    `quantization` ("q8_0", "q4_1", "q4_0") re-encodes the layers' matrices as these blocks, the embedding and
    the head as Q8_0.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        context: KernelContext,
        max_positions: int,
        plain: RowsFormat,
        keeps_blocks: bool = True,
        quantization: str | None = None,
    ) -> None:
        self.config, self.max_positions = config, max_positions
        self.num_bytes = 0
        self._context = context
        self._weights = weights
        quantize_to = None if quantization is None else RowsFormat[quantization.upper()]
        self._rule = FormatRule(plain=plain, keeps_blocks=keeps_blocks, quantize_to=quantize_to)
        self._arena = Arena()
        self._kept: list[object] = []  # what else the structs point to
        self._hidden_stride = -(-config.hidden_size // BLOCK) * BLOCK
        layers = (Layer * config.num_layers)(*(self._layer(i) for i in range(config.num_layers)))
        self.struct = self._model(layers, max_positions)
        self._last_norm = _last_norm(config, weights)
        weights.num_bytes += self.num_bytes
        del self._weights

    def __call__(self, model_input: ModelInput, kv_storage: TiledKVStorage) -> Tensor:
        """Return hidden states float32 [num_tokens, hidden_size padded to 32] and write keys and values."""
        arrays = self.arrays(model_input)
        hidden = torch.empty(arrays.num_tokens, self._hidden_stride)
        self._context.library.draftline_forward(
            self._context.handle,
            self.struct,
            kv_storage.tiles,
            *arrays.arguments,
            hidden.data_ptr(),
            model_input.faults.data_ptr(),
        )
        return hidden

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the last norm, in torch, to hidden states [num_rows, padded]: [num_rows, hidden_size]."""
        return self._last_norm(hidden[:, : self.config.hidden_size])

    def arrays(self, model_input: ModelInput) -> StepArrays:
        """Lay out a step as the kernels read it."""
        token_ids, spans, tables = model_input.token_id_list, list[int](), list[int]()
        for span in model_input.spans:
            spans += (span.start, span.num_tokens, span.first_position, len(tables))
            tables += span.block_ids
        return StepArrays(
            len(token_ids),
            len(model_input.spans),
            (ctypes.c_int64 * len(token_ids))(*token_ids),
            (ctypes.c_int32 * len(spans))(*spans),
            (ctypes.c_int32 * len(tables))(*tables),
        )

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits, float32 [num_rows, vocab_size]."""
        rows = hidden.contiguous()
        logits = torch.empty(len(rows), self.config.vocab_size)
        if len(rows):
            self._context.library.draftline_compute_logits(
                self._context.handle, self.struct, rows.data_ptr(), len(rows), logits.data_ptr()
            )
        return logits

    def _model(self, layers: "ctypes.Array[Layer]", max_positions: int) -> Model:
        config = self.config
        embed = self._matrix("embed_tokens.weight", config.vocab_size, config.hidden_size)
        head = embed
        if not config.tie_word_embeddings:
            head = self._matrix("lm_head.weight", config.vocab_size, config.hidden_size)
        rope = None
        if config.rope is not None:
            rope = Rope(
                config.rope,
                head_dim=config.head_dim,
                max_positions=max_positions,
                dtype=torch.float32,
                device=torch.device("cpu"),
            )
        half = config.head_dim // 2
        has_bias = config.norm is Norm.LAYER
        return Model(
            layers=layers,
            embed=embed.struct,
            head=head.struct,
            embed_positions=self._positions(max_positions) if config.rope is None else None,
            rope_cos=None if rope is None else self._keep(rope.cos[:, :half]),
            rope_sin=None if rope is None else self._keep(rope.signed_sin[:, half:]),
            norm_weight=self._norm("norm.weight"),
            norm_bias=self._norm("norm.bias") if has_bias else None,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            inner_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            vocab_size=config.vocab_size,
            norm_kind=NormKind.LAYER_NORM if has_bias else NormKind.RMS_NORM,
            activation=_ACTIVATIONS[config.activation],
            is_gated=config.is_gated,
            norm_eps=config.norm_eps,
            attention_scale=config.head_dim**-0.5,
        )

    def _layer(self, number: int) -> Layer:
        config, prefix = self.config, f"layers.{number}"
        has_bias = config.norm is Norm.LAYER
        return Layer(
            qkv=self._qkv(f"{prefix}.attn").struct,
            o=self._linear(f"{prefix}.attn.o_proj", config.num_heads * config.head_dim, bias=config.o_bias),
            gate_up=self._gate_up(f"{prefix}.mlp").struct,
            down=self._linear(f"{prefix}.mlp.down_proj", config.intermediate_size, bias=config.mlp_bias),
            attn_norm_weight=self._norm(f"{prefix}.attn_norm.weight"),
            attn_norm_bias=self._norm(f"{prefix}.attn_norm.bias") if has_bias else None,
            mlp_norm_weight=self._norm(f"{prefix}.mlp_norm.weight"),
            mlp_norm_bias=self._norm(f"{prefix}.mlp_norm.bias") if has_bias else None,
            q_norm_weight=self._head_norm(f"{prefix}.attn.q_norm.weight"),
            k_norm_weight=self._head_norm(f"{prefix}.attn.k_norm.weight"),
        )

    def _qkv(self, prefix: str) -> PackedMatrix:
        config = self.config
        num_rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        order = padded_heads(config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        names: tuple[str, ...] = (f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj")
        kv_rows = config.num_kv_heads * config.head_dim
        sizes: tuple[int, ...] = (config.num_heads * config.head_dim, kv_rows, kv_rows)
        if config.has_qkv_proj:
            names, sizes = (f"{prefix}.qkv_proj",), (num_rows,)
        return self._join(names, sizes, order, has_bias=config.qkv_bias)

    def _gate_up(self, prefix: str) -> PackedMatrix:
        config = self.config
        size = config.intermediate_size
        if not config.is_gated:
            return self._join((f"{prefix}.up_proj",), (size,), in_order(size), has_bias=config.mlp_bias)
        names = (f"{prefix}.gate_proj", f"{prefix}.up_proj")
        return self._join(names, (size, size), tiles_in_turn(size), has_bias=config.mlp_bias)

    def _join(
        self, names: tuple[str, ...], sizes: tuple[int, ...], order: npt.NDArray[np.int64], *, has_bias: bool
    ) -> PackedMatrix:
        """Pack layers that share their input as one matrix."""
        pairs = list(zip(names, sizes, strict=True))
        stored = [
            self._weights.stored(f"{name}.weight", size, self.config.hidden_size) for name, size in pairs
        ]
        bias = None
        if has_bias:
            bias = torch.cat([self._weights.take_float32(f"{name}.bias", size) for name, size in pairs])
        packed = pack(read_rows(stored, self._rule), order, arena=self._arena, bias=bias)
        return self._keep_matrix(packed)

    def _linear(self, name: str, in_features: int, *, bias: bool) -> object:
        size = self.config.hidden_size
        stored = self._weights.stored(f"{name}.weight", size, in_features)
        offsets = self._weights.take_float32(f"{name}.bias", size) if bias else None
        packed = pack(read_rows([stored], self._rule), in_order(size), arena=self._arena, bias=offsets)
        return self._keep_matrix(packed).struct

    def _matrix(self, name: str, *shape: int) -> PackedMatrix:
        """Pack an embedding or a head, which never go below 8 bits: every logit comes through them."""
        rule = self._rule
        if rule.quantize_to is not None:
            rule = replace(rule, quantize_to=RowsFormat.Q8_0)
        stored = self._weights.stored(name, *shape)
        return self._keep_matrix(pack(read_rows([stored], rule), in_order(shape[0]), arena=self._arena))

    def _keep_matrix(self, packed: PackedMatrix) -> PackedMatrix:
        self._kept.append(packed)
        self.num_bytes += packed.num_bytes
        return packed

    def _norm(self, name: str) -> int:
        """Return the address of a norm's weight or bias, padded with zeros to whole blocks."""
        values = torch.zeros(self._hidden_stride)
        values[: self.config.hidden_size] = self._weights.take_float32(name, self.config.hidden_size)
        return self._keep(values)

    def _head_norm(self, name: str) -> int | None:
        if not self.config.qk_norm:
            return None
        return self._keep(self._weights.take_float32(name, self.config.head_dim))

    def _positions(self, max_positions: int) -> int:
        config = self.config
        shape = (config.max_position_embeddings, config.hidden_size)
        return self._keep(self._weights.take_float32("embed_positions.weight", *shape)[:max_positions])

    def _keep(self, tensor: Tensor) -> int:
        kept = tensor.float().contiguous()
        self._kept.append(kept)
        self.num_bytes += kept.numel() * 4
        return kept.data_ptr()


def _last_norm(config: ModelConfig, weights: Weights) -> RMSNorm | LayerNorm:
    """Return the norm before the head in torch, for hidden states that leave the kernels."""
    weight = weights.take_float32("norm.weight", config.hidden_size)
    if config.norm is Norm.RMS:
        return RMSNorm(weight, eps=config.norm_eps)
    return LayerNorm(weight, weights.take_float32("norm.bias", config.hidden_size), eps=config.norm_eps)
