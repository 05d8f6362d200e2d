"""Results: what a step chose, on its way to the host, in memory that waits for it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.execution.cuda.device import Device, Event
from engine.interface.outputs import TokenLogprobs
from engine.kernels.cuda.step_buffers import StepShape

MAX_DEVICE_LOGPROBS = 20  # likeliest tokens of a row that the kernels find


class LogprobBuffers(NamedTuple):
    """The likeliest tokens of each row, and what the chosen one has."""

    values: Tensor  # float32 [max_rows, MAX_DEVICE_LOGPROBS]
    ids: Tensor  # int32, of the same shape
    chosen: Tensor  # float32 [max_rows]

    @classmethod
    def on_device(cls, max_rows: int, device: torch.device) -> "LogprobBuffers":
        """Return them in the device's memory."""
        values = torch.zeros(max_rows, MAX_DEVICE_LOGPROBS, device=device)
        return cls(values, torch.zeros_like(values, dtype=torch.int32), torch.zeros(max_rows, device=device))

    @classmethod
    def on_host(cls, max_rows: int, device: Device) -> "LogprobBuffers":
        """Return them in host memory that the device can copy to."""
        values, ids = (
            device.host_buffer(max_rows * MAX_DEVICE_LOGPROBS).view(max_rows, MAX_DEVICE_LOGPROBS)
            for _ in range(2)
        )
        return cls(values.view(torch.float32), ids, device.host_buffer(max_rows).view(torch.float32))

    def first(self, num_rows: int) -> "LogprobBuffers":
        """Return those of the first rows."""
        return LogprobBuffers(*(part[:num_rows] for part in self))


class ResultSlot:
    """Host memory for the results of one step."""

    def __init__(self, device: Device, *, max_results: int, max_rows: int) -> None:
        self.numbers = device.host_buffer(max_results)
        self.logprobs = LogprobBuffers.on_host(max_rows, device)


class StepResults(NamedTuple):
    """A step whose results are under way to a slot."""

    slot: ResultSlot
    event: Event
    shape: StepShape

    def tokens(self, num_rows: int) -> list[int]:
        """Wait, and return the chosen tokens of the first rows."""
        self.event.synchronize()
        tokens: list[int] = self._numbers[:num_rows].tolist()
        return tokens

    def faults(self, num_tokens: int) -> frozenset[int]:
        """Return which of the first tokens have keys, values or logits that are not finite; call it then."""
        marks = self._numbers[self.shape.num_rows : self.shape.num_rows + num_tokens]
        return frozenset(np.flatnonzero(marks).tolist()) if marks.any() else frozenset()

    def logprobs(self, row: int, token_id: int, num_top: int) -> TokenLogprobs:
        """Return what a row's distribution says of the chosen token and of so many likeliest ones."""
        buffers = self.slot.logprobs
        ids, values = buffers.ids[row, :num_top].tolist(), buffers.values[row, :num_top].tolist()
        top = tuple((t, p) for t, p in zip(ids, values, strict=True) if p != float("-inf"))
        return TokenLogprobs(token_id, buffers.chosen[row].item(), top)

    @property
    def _numbers(self) -> npt.NDArray[np.int32]:
        numbers: npt.NDArray[np.int32] = self.slot.numbers.numpy()
        return numbers
