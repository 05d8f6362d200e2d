"""Weights: a checkpoint's tensors, handed to a model by name and checked against the shape it expects."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.checkpoint import StoredTensor
from engine.checkpoint.finite import check_finite
from engine.checkpoint.stored_tensor import describe
from engine.checkpoint.streaming import stream_tensor, too_large_error
from engine.interface.errors import CheckpointError


class Weights:
    """Takes each tensor exactly once, as `dtype` on `device`; what is left over at the end is an error."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
        path: Path | None = None,
    ) -> None:
        self._tensors = tensors
        self._path = path  # of the checkpoint, for errors
        self._untaken = set(tensors)
        self.dtype = dtype
        self.device = device
        self.num_bytes = 0  # taken so far

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the tensor of this name; raises CheckpointError when missing, misshapen or not finite."""
        if streams_to(self.device):
            tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
            self.take_into(name, tensor)
            return tensor
        tensor = self.stored(name, *shape).dequantize().to(self.dtype)
        self._check_float16(name, tensor)
        self.num_bytes += tensor.nbytes
        return tensor

    def take_into(self, name: str, destination: Tensor) -> None:
        """Write the tensor of this name, of the shape of `destination`, into that; raises as take() does.

        `destination` is of our dtype on our device, as the rows of a larger tensor are.
        """
        if streams_to(self.device):
            stream_tensor(name, self.find(name, tuple(destination.shape)), destination)
            self._untaken.discard(name)
        else:
            destination.copy_(self.stored(name, *destination.shape).dequantize())
            self._check_float16(name, destination)
        self.num_bytes += destination.nbytes

    def take_float32(self, name: str, *shape: int) -> Tensor:
        """Return the tensor in float32 on the CPU, whatever the dtype of the model; not counted."""
        return self.stored(name, *shape).dequantize()

    def stored(self, name: str, *shape: int) -> StoredTensor:
        """Return the tensor as the file holds it; raises CheckpointError as take() does."""
        stored = self.find(name, shape)
        if name in self._untaken:
            check_finite(name, stored)
            self._untaken.discard(name)
        return stored

    def _check_float16(self, name: str, tensor: Tensor) -> None:
        if self.dtype is torch.float16 and not torch.isfinite(tensor).all():
            raise too_large_error(name, self._tensors[name])

    def find(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Look at a tensor without taking it or reading its numbers; raises CheckpointError."""
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self._path or 'checkpoint'}: tensor {name} is missing (expected shape {list(shape)}); the "
                "file is incomplete, or its configuration is of another model"
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{describe(name, stored)} has shape {list(stored.shape)}, but the configuration says "
                f"{list(shape)}"
            )
        return stored

    def finish(self) -> None:
        """Raise CheckpointError if the checkpoint holds tensors that the model did not take."""
        if self._untaken:
            names = sorted(self._untaken)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{describe(names[0], self._tensors[names[0]])}{more}: a model of this configuration has "
                "no place for it; it is of another architecture, or an adapter that was not merged"
            )


def streams_to(device: torch.device) -> bool:
    """Tell whether tensors go to this device piece by piece; on a CPU they are checked faster as bits."""
    return device.type != "cpu"
