"""A random checkpoint whose matrices are GGUF blocks of Q4_0, half a gigabyte for a billion weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from engine.checkpoint.checkpoint import Checkpoint, StoredTensor
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.stored_tensor import GGUFTensor
from tests.gpu.checkpoints import random_checkpoint

_WEIGHTS, _BYTES = 32, 18  # of a block: a float16 scale and 32 nibbles, of which 8 means 0
_PERIOD = 1 << 16  # blocks that differ; then they repeat


def quantised_checkpoint(config: ModelConfig) -> Checkpoint:
    """Return random blocks on the host; norms stay float32."""
    plain = random_checkpoint(config, device=torch.device("cpu"), name="random-q4_0")
    blocks = _random_blocks()
    tensors: dict[str, StoredTensor] = {
        name: stored if len(stored.shape) == 1 else _blocks_of(name, stored.shape, blocks)
        for name, stored in plain.tensors.items()
    }
    return replace(plain, tensors=tensors)


def _random_blocks() -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (_PERIOD, _BYTES), dtype=np.uint8)
    scale = np.array([0.005], dtype=np.float16).view(np.uint8)
    blocks[:, :2] = scale
    return blocks.reshape(-1)


def _blocks_of(name: str, shape: tuple[int, ...], blocks: npt.NDArray[np.uint8]) -> GGUFTensor:
    rows, columns = shape
    row_bytes = columns // _WEIGHTS * _BYTES
    return GGUFTensor(
        name=name,
        path=Path("random"),
        shape=shape,
        format="Q4_0",
        stored_rows=np.resize(blocks, rows * row_bytes).reshape(rows, row_bytes),
    )
