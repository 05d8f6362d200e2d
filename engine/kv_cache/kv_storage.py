"""KVStorage: the K and V tensors of every layer, and how many blocks fit the machine."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.errors import ConfigError


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, each [num_kv_heads, num_blocks, block_size, head_dim].

    Heads come first so that gathering a sequence's blocks yields [num_kv_heads, positions, head_dim]
    in one pass, which is what a batched matmul wants.
    """

    keys: Tensor
    values: Tensor

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


def kv_bytes_per_block(
    *, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> int:
    """Return the bytes that one block takes over all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * block_size * dtype.itemsize


def choose_num_blocks(*, bytes_per_block: int, max_useful_blocks: int, memory: int) -> int:
    """Return as many blocks as `memory` bytes hold, but no more than could ever be used."""
    num_blocks = min(max_useful_blocks, memory // bytes_per_block)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_cache_memory of {memory:,} bytes is less than one block of {bytes_per_block:,} bytes; set "
            "it higher (where it is not set, it is a share of the memory that is free)"
        )
    return num_blocks


CPU_DEFAULT_SHARE = 0.25
CPU_DEFAULT_LIMIT = 2 * 2**30
CUDA_DEFAULT_SHARE = 0.85


def default_kv_cache_memory(device: torch.device) -> int:
    """Return the bytes to use when nobody says: a modest share of what is free.

    On a CPU the memory is only taken as it is used, but it is other programs' too: a quarter of what
    is free, 2 GiB at most. On a GPU it is ours: most of what is left after the weights.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_DEFAULT_SHARE)
    return min(CPU_DEFAULT_LIMIT, int(available_memory() * CPU_DEFAULT_SHARE))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes this process could still take: the machine's, or its container's if less."""
    machine = 4 * 2**30  # where /proc is missing: assume little
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        machine = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _read_int(cgroup / "memory.max")
    used = _read_int(cgroup / "memory.current")
    return machine if limit is None or used is None else max(0, min(machine, limit - used))


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _zeros_touched_on_use(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU the system backs a page only when it is first written.

    Zeros, not garbage: masked positions are multiplied by an exact 0, and 0 * NaN is NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
