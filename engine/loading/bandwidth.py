"""How fast this machine reads memory: what bounds the decoding of one stream."""

import statistics
import time

import torch


def measure_bandwidth(num_bytes: int = 2**30, *, repeats: int = 9) -> dict[str, float]:
    """Stream over a buffer far larger than the caches with torch's threads; return the median and best GB/s.

    It is a sum of 64-bit integers by torch, which reads as fast as a loop in C here and needs no compiler.
    """
    buffer = torch.ones(num_bytes // 8, dtype=torch.int64)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        buffer.sum()
        times.append(time.perf_counter() - started)
    rates = [buffer.nbytes / seconds / 1e9 for seconds in times[1:]]  # the first one touches the pages
    return {"median": round(statistics.median(rates), 2), "best": round(max(rates), 2)}


def decode_limit(weight_bytes: int, gb_per_s: float) -> float:
    """Tokens per second of one stream if a token cost one reading of the weights and nothing else."""
    return gb_per_s * 1e9 / weight_bytes if weight_bytes else 0.0
