"""KV memory: how many bytes to take for keys and values, and how many blocks they make."""

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.interface.errors import ConfigError

CPU_DEFAULT_SHARE = 0.25
CPU_DEFAULT_LIMIT = 2 * 2**30
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context with torch's kernels takes at most; the driver tells nobody whose memory is whose."""

GPU_MARGIN_BYTES = 256 * 2**20
"""Left free on a GPU when all is allocated: fragments, and what the driver takes by itself."""


def choose_num_blocks(*, bytes_per_block: int, max_useful_blocks: int, memory: int) -> int:
    """Return as many blocks as `memory` bytes hold, but no more than could ever be used."""
    num_blocks = min(max_useful_blocks, memory // bytes_per_block)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_cache_memory of {memory:,} bytes is less than one block of {bytes_per_block:,} bytes; set "
            "it higher (where it is not set, it is a share of the memory that is free)"
        )
    return num_blocks


def default_kv_cache_memory() -> int:
    """Return the bytes to use on a CPU when nobody says: a quarter of what is free, 2 GiB at most.

    The memory is only taken as it is used, but it is other programs' too.
    """
    return min(CPU_DEFAULT_LIMIT, int(available_memory() * CPU_DEFAULT_SHARE))


@dataclass(frozen=True, kw_only=True)
class GPUMemory:
    """A card's memory at one moment, in bytes."""

    total: int
    free: int  # for every process
    reserved: int  # by torch's allocator in this process

    def used_by_this_process(self, at_start: "GPUMemory") -> int:
        """Return what this process holds now, its context, kernels and captured graphs included.

        `at_start` was measured before anything was loaded. What was taken then beyond a context is another
        process's; what that one takes later cannot be told apart and counts as ours.
        """
        taken_at_start = at_start.total - at_start.free - at_start.reserved
        others = max(0, taken_at_start - CONTEXT_BYTES)
        return max(self.reserved, self.total - self.free - others)


def measure_gpu_memory(device: torch.device) -> GPUMemory:
    """Measure a CUDA device, after giving back what torch keeps without using it."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return GPUMemory(total=total, free=free, reserved=torch.cuda.memory_reserved(device))


def kv_cache_bytes_on_gpu(
    *,
    total: int,
    free: int,
    used_by_this_process: int,
    utilization: float | None = None,
    needed: int = 1,
    margin: int = GPU_MARGIN_BYTES,
) -> int:
    """Return the bytes for keys and values on a card: our share less what we hold, if so much is free.

    All sizes in bytes. `used_by_this_process` holds weights, buffers and captured graphs already; `needed`
    is the least that makes sense; `margin` stays free. Raises ConfigError where it does not fit.
    """
    share = DEFAULT_GPU_MEMORY_UTILIZATION if utilization is None else utilization
    left_of_share, left_of_card = int(total * share) - used_by_this_process, free - margin
    num_bytes = min(left_of_share, left_of_card)
    if num_bytes < needed:
        is_share_short = left_of_share <= left_of_card
        first = "raise gpu_memory_utilization" if is_share_short else "end what else uses the card"
        raise ConfigError(
            f"keys and values need at least {needed:,} bytes on the GPU, {needed - num_bytes:,} more than "
            f"there are: of {total:,} bytes, gpu_memory_utilization {share:g} gives this server "
            f"{int(total * share):,}, its weights and buffers hold {used_by_this_process:,}, and {free:,} "
            f"are free; {first}, lower max_model_len, max_num_seqs or max_num_batched_tokens, or take a "
            "smaller model"
        )
    return num_bytes


def check_kv_cache_fits(num_bytes: int, *, free: int, margin: int = GPU_MARGIN_BYTES) -> None:
    """Raise ConfigError, with the number that fits, for a kv_cache_memory that a card has no room for."""
    most = max(0, free - margin)
    if num_bytes > most:
        raise ConfigError(
            f"kv_cache_memory: {num_bytes:,} bytes of keys and values do not fit on the GPU; {free:,} bytes "
            f"are free beside the weights and buffers, and {most:,} can be used: set it to that at most, or "
            "leave it out"
        )


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
