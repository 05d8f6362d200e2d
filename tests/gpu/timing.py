"""Times on a device: medians of runs that are waited for."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait for all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, *, repeats: int = 10) -> float:
    """Return the median time of `run`, by the device's own clock where it has one."""
    for _ in range(2):
        run()
    synchronize(device)
    if device.type == "cuda":
        return _median_event_seconds(run, repeats)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _median_event_seconds(run: Callable[[], object], repeats: int) -> float:
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3
