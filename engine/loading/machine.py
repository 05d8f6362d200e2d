"""What this machine offers: device, dtype, threads."""

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.interface.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER_RETURN = 2**30  # bytes


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but this PyTorch sees no CUDA GPU; use 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name; "auto" is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return dtypes[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def choose_num_threads(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores this process may really use: its affinity, or its container's quota if less."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(num_cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or the quota is the word "max"
        return num_cores


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of giving it back to the system.

    Every large temporary would otherwise be mapped anew and zeroed page by page: a fifth of the time of a
    prompt on two cores. Does nothing where the C library is another.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_RETURN)
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER_RETURN)


def cpu_name() -> str:
    """Return what the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def device_name(device: torch.device) -> str:
    """Return what people call this device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What a kernel's launch depends on."""

    name: str
    capability: tuple[int, int]  # as (9, 0) of sm_90
    num_multiprocessors: int
    shared_memory_per_block: int  # bytes that a block may ask for
    total_memory: int  # bytes


_SHARED_MEMORY = {
    **dict.fromkeys(((8, 0), (8, 7)), 163),
    **dict.fromkeys(((8, 6), (8, 9), (12, 0), (12, 1)), 99),
    **dict.fromkeys(((9, 0), (10, 0), (10, 3), (11, 0)), 227),
}
"""KiB that a block may ask for, by capability (CUDA C++ Programming Guide, technical specifications)."""

_LEAST_SHARED_MEMORY = 48  # KiB: what every card gives


def describe_gpu(device: torch.device) -> GPU:
    """Return what a CUDA device is; where torch does not say it, shared memory is the capability's."""
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    known = _SHARED_MEMORY.get(capability, _LEAST_SHARED_MEMORY) * 1024
    return GPU(
        name=properties.name,
        capability=capability,
        num_multiprocessors=properties.multi_processor_count,
        shared_memory_per_block=getattr(properties, "shared_memory_per_block_optin", known),
        total_memory=properties.total_memory,
    )
