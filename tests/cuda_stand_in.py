"""A CUDA device for tests without one: work runs at once, in torch, and what a real one forbids raises.

A graph is the list of launches that were made while it was captured, with the arguments of that moment, as
on a card: a number that the host changes afterwards does not reach it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine.kernels.cuda.kernels import Kernels

_READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.nonzero),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
}


class NoHostReads(TorchFunctionMode):
    """Raises where the host would wait for a number of the device; host buffers may be read."""

    def __init__(self, device: "HostDevice") -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS and not self._device.is_host_buffer(args[0]):
            raise AssertionError(f"the host reads a tensor of the device: {func}")
        return func(*args, **kwargs or {})


class Moment:
    """An event that is over."""

    def synchronize(self) -> None:
        pass


class HostDevice:
    """The stand-in; counts captures, launches and copies."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.num_captures = self.num_replays = self.num_sends = self.num_sent = 0
        self._buffers: set[int] = set()
        self._recorded: list[Callable[[], None]] | None = None

    def host_buffer(self, size: int) -> Tensor:
        buffer = torch.zeros(size, dtype=torch.int32)
        self._buffers.add(buffer.untyped_storage().data_ptr())
        return buffer

    def is_host_buffer(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._buffers

    def send(self, source: Tensor, target: Tensor) -> None:
        assert self._recorded is None, "a copy from the host has no place in a graph"
        assert self.is_host_buffer(source)
        assert not self.is_host_buffer(target)
        self.num_sends += 1
        self.num_sent += source.numel()
        target.copy_(source)

    def upload(self, numbers) -> Tensor:
        return torch.from_numpy(numbers.copy())

    def receive(self, source: Tensor, target: Tensor) -> None:
        assert self.is_host_buffer(target)
        assert not self.is_host_buffer(source)
        target.copy_(source)

    def record(self) -> Moment:
        return Moment()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        self._recorded = launches = []
        work()
        self._recorded = None

        def replay() -> None:
            self.num_replays += 1
            for launch in launches:
                launch()

        return replay

    def wrap(self, kernels: Kernels) -> Kernels:
        """Kernels whose launches can be captured, and which may read what they like."""
        return Kernels(*map(self._wrap, kernels))

    def _wrap(self, kernel: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                kernel(*args, **kwargs)

        def launch(*args: Any, **kwargs: Any) -> None:
            if self._recorded is None:
                run(*args, **kwargs)
            else:
                self._recorded.append(lambda: run(*args, **kwargs))

        return launch


@contextmanager
def no_host_reads(device: HostDevice) -> Iterator[None]:
    with NoHostReads(device):
        yield
