"""KVStorage: the K and V tensors of every layer, and attention over them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.model.attention import paged_attention
from engine.model.model_input import ModelInput


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, each [num_kv_heads, num_blocks, block_size, head_dim].

    Heads come first so that gathering a sequence's blocks yields [num_kv_heads, positions, head_dim]
    in one pass, which is what a batched matmul wants.
    """

    keys: Tensor
    values: Tensor

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, step: ModelInput, *, scale: float
    ) -> Tensor:
        """Write a step's keys and values, then attend each query to its request's, up to its own position.

        query [num_tokens, num_heads, head_dim], keys and values [num_tokens, num_kv_heads, head_dim]; returns
        [num_tokens, num_heads * head_dim]. Tokens of which a value is not finite are marked in `step.faults`.
        """
        step.faults.logical_or_(self.write(step.tensors.slot_mapping, keys, values))
        return paged_attention(query, self.keys, self.values, step.tile_groups, scale=scale)

    def write(self, slot_mapping: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values [num_tokens, num_kv_heads, head_dim] at slots [num_tokens].

        What is not finite is stored as 0: it would outlive its request, for others multiply it by weights
        of 0. Returns bool [num_tokens], true for the tokens of which that was so.
        """
        is_finite = torch.isfinite(keys) & torch.isfinite(values)
        keys, values = (x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for x in (keys, values))
        self.keys.flatten(1, 2).index_copy_(1, slot_mapping, keys.transpose(0, 1))
        self.values.flatten(1, 2).index_copy_(1, slot_mapping, values.transpose(0, 1))
        return ~is_finite.flatten(1).all(dim=1)


class KVStorage:
    """KV memory of a model: `num_blocks` blocks of `block_size` positions in every layer."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        shape = (num_layers, 2, num_kv_heads, num_blocks, block_size, head_dim)
        self._storage = _zeros_touched_on_use(shape, dtype, device)
        self.layers = [LayerKV(keys=layer[0], values=layer[1]) for layer in self._storage]
        self.num_bytes = self._storage.numel() * self._storage.element_size()

    def copy_block(self, source: int, target: int) -> None:
        """Give the block `target` the keys and values of the block `source`."""
        self._storage[:, :, :, target].copy_(self._storage[:, :, :, source])

    def read_block(self, block_id: int) -> bytes:
        """Return a copy of a block's bytes."""
        block = self._storage[:, :, :, block_id].contiguous().cpu()
        return block.view(-1).view(torch.uint8).numpy().tobytes()

    def write_block(self, block_id: int, content: bytes) -> None:
        """Give a block the bytes that read_block() returned."""
        block = self._storage[:, :, :, block_id]
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(block.dtype)
        block.copy_(values.view(block.shape))


def kv_bytes_per_block(
    *, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> int:
    """Return the bytes that one block takes over all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * block_size * dtype.itemsize


def _zeros_touched_on_use(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU the system backs a page only when it is first written.

    Zeros, not garbage: masked positions are multiplied by an exact 0, and 0 * NaN is NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
