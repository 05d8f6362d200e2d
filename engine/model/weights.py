"""Weights: a checkpoint's tensors, handed to a model by name and checked against the shape it expects."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.checkpoint.checkpoint import StoredTensor
from engine.errors import CheckpointError


class Weights:
    """Takes each tensor exactly once, as `dtype` on `device`; what is left over at the end is an error."""

    def __init__(
        self, tensors: Mapping[str, StoredTensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._tensors = tensors
        self._untaken = set(tensors)
        self.dtype = dtype
        self.device = device
        self.num_bytes = 0  # taken so far

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the tensor of this name; raises CheckpointError when missing or misshapen."""
        tensor = self.stored(name, *shape).dequantize().to(device=self.device, dtype=self.dtype)
        self.num_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def take_float32(self, name: str, *shape: int) -> Tensor:
        """Return the tensor in float32 on the CPU, whatever the dtype of the model; not counted."""
        return self.stored(name, *shape).dequantize()

    def stored(self, name: str, *shape: int) -> StoredTensor:
        """Return the tensor as the file holds it; raises CheckpointError when missing or misshapen."""
        stored = self._tensors.get(name)
        if stored is None:
            raise CheckpointError(f"checkpoint: tensor {name!r} is missing (expected shape {shape})")
        if stored.shape != shape:
            raise CheckpointError(f"checkpoint: tensor {name!r} has shape {stored.shape}, expected {shape}")
        self._untaken.discard(name)
        return stored

    def finish(self) -> None:
        """Raise CheckpointError if the checkpoint holds tensors that the model did not take."""
        if self._untaken:
            names = sorted(self._untaken)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(f"checkpoint: the model has no place for {', '.join(names[:5])}{more}")
