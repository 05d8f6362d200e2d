"""KV memory: how many bytes to take for keys and values, and how many blocks they make."""

from pathlib import Path

import torch

from engine.interface.errors import ConfigError


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
