"""CudaDevice: copies, events and captured graphs, in the order of one stream."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int32]

Work = Callable[[], None]
"""Launches that read and write tensors that stay where they are."""


class Event(Protocol):
    """A moment in the order of the device's work."""

    def synchronize(self) -> None:
        """Wait until the device is there."""


class Device(Protocol):
    """What the executor needs of a device: its work runs in order, beside the host's."""

    device: torch.device

    def host_buffer(self, size: int) -> Tensor:
        """Return int32 [size] in host memory that the device can copy from and to by itself."""

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy from host memory, which must stay as it is until the copy is over."""

    def upload(self, numbers: Numbers) -> Tensor:
        """Return a copy on the device."""

    def receive(self, source: Tensor, target: Tensor) -> None:
        """Copy to host memory, which is filled once a later event is over."""

    def record(self) -> Event:
        """Return the end of all work so far."""

    def capture(self, work: Work) -> Work:
        """Return what launches all of `work` at once; it has run before, so nothing is left to compile."""


class CudaDevice:
    """A CUDA card; everything runs on the stream that is current on the engine's thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._capture_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_buffer(self, size: int) -> Tensor:
        """Return int32 [size] in host memory that the device can copy from and to by itself."""
        return torch.zeros(size, dtype=torch.int32, pin_memory=True)

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy from host memory, which must stay as it is until the copy is over."""
        target.copy_(source, non_blocking=True)

    def upload(self, numbers: Numbers) -> Tensor:
        """Return a copy on the device."""
        return torch.from_numpy(numbers).pin_memory().to(self.device, non_blocking=True)

    def receive(self, source: Tensor, target: Tensor) -> None:
        """Copy to host memory, which is filled once a later event is over."""
        target.copy_(source, non_blocking=True)

    def record(self) -> Event:
        """Return the end of all work so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def capture(self, work: Work) -> Work:
        """Return what launches all of `work` at once; it has run before, so nothing is left to compile."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # Not torch.cuda.graph(): it collects garbage and empties caches, which takes longer than a step.
        self._capture_stream.wait_stream(stream)
        with torch.cuda.stream(self._capture_stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            work()
            graph.capture_end()
        stream.wait_stream(self._capture_stream)
        return graph.replay
