"""Checkpoint: weights, tokenizer and defaults of a model, whatever file they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from engine.checkpoint.embedding_defaults import EmbeddingDefaults
from engine.checkpoint.model_config import ModelConfig


class StoredTensor(Protocol):
    """One weight as the file holds it, not yet read into memory of its own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, row-major, in our layout: linear weights are [out_features, in_features]."""

    @property
    def format(self) -> str:
        """Storage format in GGUF's words: "F32", "F16", "BF16", "Q8_0", "Q4_1", ..."""

    def dequantize(self) -> torch.Tensor:
        """Return the weight as float32 of `shape`, in memory of its own.

        Raises CheckpointError when the bytes cannot be read.
        """


@dataclass(frozen=True, kw_only=True)
class TokenizerData:
    """A byte-level BPE or character vocabulary as a checkpoint holds it.

    BPE tokens are written in GPT-2's printable byte alphabet, special and added tokens as plain text.
    Characters are plain text, one per id, and have no merges and no special tokens. The model's vocabulary
    may be larger than the tokenizer's (padding): the ids above have no text.
    """

    tokens: tuple[str, ...]  # by id
    merges: tuple[tuple[str, str], ...]  # in order of priority
    special_token_ids: frozenset[int]  # control tokens: matched whole, skipped when decoding
    added_token_ids: frozenset[int] = frozenset()  # plain-text tokens outside BPE: matched whole, kept
    pre_tokenizer: str = "gpt-2"  # "gpt-2", "smollm", "llama-bpe", "qwen2", or "regex:<pattern>"
    ignore_merges: bool = False  # a piece that is a token is that token, whether merges arrive at it or not
    kind: Literal["bpe", "char"] = "bpe"
    normalization: Literal["none", "nfc"] = "none"  # of the text between special tokens, before splitting
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    add_bos: bool = False  # put the begin token before every prompt
    suffix_token_id: int | None = None  # behind every text whose embedding is wanted
    chat_template: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that a model file says, in our names.

    Tensor names, Llama family: `embed_tokens.weight`, `layers.N.attn_norm.weight`,
    `layers.N.attn.{q,k,v,o}_proj.{weight,bias}`, `layers.N.attn.{q,k}_norm.weight`,
    `layers.N.mlp_norm.weight`, `layers.N.mlp.{gate,up,down}_proj.{weight,bias}`, `norm.weight`,
    `lm_head.weight` (absent when tied). GPT-2 adds `embed_positions.weight`, `.bias` on the norms and
    `norm.bias`, holds q, k and v as `layers.N.attn.qkv_proj.{weight,bias}` and has no `gate_proj`.
    """

    name: str  # how the model is called when nobody says otherwise
    path: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    tokenizer: TokenizerData
    stop_token_ids: frozenset[int] = frozenset()  # end-of-text and end-of-turn tokens
    generation_defaults: Mapping[str, float] = field(default_factory=dict)  # by name in SamplingParams
    embedding_defaults: EmbeddingDefaults = EmbeddingDefaults()  # noqa: RUF009 - frozen
    fingerprint: bytes = b""  # 16 bytes; equal files have equal fingerprints
