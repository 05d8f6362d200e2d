"""What loading hands from stage to stage: a model's source, an executor's shape, what a first look says."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.loading.memory_errors import LoadStage, memory_errors, stage_errors
from engine.loading.numerics import Numerics
from engine.model.kv_storage import kv_bytes_per_block
from engine.model.weights import Weights

_WEIGHTS_ADVICE = "free memory, take a smaller model, or set dtype or quantization"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model to be loaded: its configuration, its weights, and how many positions it is to know."""

    name: str  # for errors
    config: ModelConfig
    weights: Weights
    max_positions: int


@dataclass(frozen=True, kw_only=True)
class ExecutorShape:
    """What an executor must know beside its models."""

    vocab_size: int  # tokens that may be chosen
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


class Profile(NamedTuple):
    """What is known of loaded models before they have room for keys and values."""

    numerics: Numerics
    step_bytes: int = 0  # on a GPU, that steps and their graphs take beside weights, keys and values


def weight_errors(source: ModelSource, device: torch.device) -> AbstractContextManager[None]:
    """Turn a failed allocation of a model's weights into a ConfigError."""
    if device.type == "cuda":
        return stage_errors(LoadStage.WEIGHTS, device, name=source.name)
    return memory_errors(f"{source.name}: the weights", _WEIGHTS_ADVICE, device)


def plain_kv_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block of plain numbers takes over all layers."""
    return kv_bytes_per_block(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_size=block_size,
        dtype=dtype,
    )
