"""StoredTensor's two kinds: quantised or plain blocks of a GGUF file, and what torch can map."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants

from engine.checkpoint.checkpoint import StoredTensor
from engine.interface.errors import CheckpointError

PLAIN_FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Formats that are one number after the other."""

GGUF_FORMATS = (
    *PLAIN_FORMATS,
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
"""Formats of GGUF tensors that can be read; not NVFP4, whose tensors are scaled by further ones."""

_PIECE_BYTES = 1 << 16  # dequantised at a time: temporaries stay in the cache, four times faster than whole


@dataclass(frozen=True, eq=False, kw_only=True)
class GGUFTensor:
    """A tensor of a memory-mapped GGUF file; nothing is copied before `dequantize` or `raw`."""

    name: str  # as the file calls it
    path: Path
    shape: tuple[int, ...]
    format: str
    stored_rows: npt.NDArray[np.uint8]  # [shape[0] * ... * shape[-2], bytes per row]; 1-D: [shape[0], bytes]
    row_order: npt.NDArray[np.intp] | None = None  # our row i is stored row row_order[i]; None: as stored

    @property
    def raw(self) -> npt.NDArray[np.uint8]:
        """The stored bytes as [rows, bytes per row], in our row order: a view unless rows are reordered."""
        return self.stored_rows if self.row_order is None else self.stored_rows[self.row_order]

    def dequantize(self) -> torch.Tensor:
        """Return the weight as float32 of `shape`, in memory of its own."""
        with self._reading():
            return torch.from_numpy(self._float32()).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return some rows of one or two dimensions: plain numbers in their dtype, blocks as float32.

        Raises CheckpointError when the bytes cannot be read.
        """
        rows = self.stored_rows
        rows = rows[start:stop] if self.row_order is None else rows[self.row_order[start:stop]]
        dtype = PLAIN_FORMATS.get(self.format)
        with self._reading():
            if dtype is None:
                values = torch.from_numpy(_dequantize_rows(rows, self.format))
            else:
                values = torch.from_numpy(np.array(rows)).view(dtype)
            return values.reshape(-1, *self.shape[1:])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, MemoryError, NotImplementedError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} ({self.format}) cannot be read: {error}"
            ) from error

    def _float32(self) -> npt.NDArray[np.float32]:
        rows = self.raw
        if self.format == "F32":
            return rows.view(np.float32).astype(np.float32)
        if self.format == "F16":
            return rows.view(np.float16).astype(np.float32)
        return _dequantize_rows(rows, self.format)


def _dequantize_rows(rows: npt.NDArray[np.uint8], tensor_format: str) -> npt.NDArray[np.float32]:
    """Turn [rows, bytes per row] into float32 [rows, row length], a cache-sized piece at a time."""
    kind = getattr(quants, tensor_format)
    kind.init_grid()
    row_length = rows.shape[1] // kind.type_size * kind.block_size
    values = np.empty((rows.shape[0], row_length), dtype=np.float32)
    step = max(1, _PIECE_BYTES // rows.shape[1])
    with np.errstate(all="ignore"):  # a corrupt scale may be infinite: the values are then, too
        for start in range(0, rows.shape[0], step):
            values[start : start + step] = kind.dequantize_rows(rows[start : start + step])
    return values


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchTensor:
    """A plain float tensor behind a function that maps it; `load` is called at every use."""

    name: str  # as the file calls it
    path: Path
    shape: tuple[int, ...]
    format: str
    load: Callable[[], torch.Tensor]
    transposed: bool = False  # the file holds [in_features, out_features] (GPT-2's Conv1D)

    @property
    def raw(self) -> npt.NDArray[np.uint8]:
        """The stored bytes as [rows, bytes per row]: a view unless transposed."""
        values = self.mapped().contiguous().view(torch.uint8).numpy()
        return values.reshape(self.shape[0] if self.shape else 1, -1)

    def dequantize(self) -> torch.Tensor:
        """Return the weight as float32 of `shape`, in memory of its own."""
        return self.mapped().to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return some rows as the file has them; nothing is copied."""
        return self.mapped()[start:stop]

    def mapped(self) -> torch.Tensor:
        """Return the values as the file has them, in our orientation; nothing is copied."""
        try:
            values = self.load()
        except (RuntimeError, OSError, ValueError, MemoryError) as error:
            raise CheckpointError(f"{self.path}: tensor {self.name} cannot be read: {error}") from error
        return values.t() if self.transposed else values


def describe(name: str, tensor: StoredTensor) -> str:
    """Say where a tensor is: its file and the name it has there, or `name` for one that is in no file."""
    if isinstance(tensor, GGUFTensor | TorchTensor):
        return f"{tensor.path}: tensor {tensor.name}"
    return f"tensor {name}"


def are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    """Tell whether two tensors hold the same bytes; unequal ones are told apart by their first megabyte."""
    if first is second:
        return True
    if not isinstance(first, GGUFTensor | TorchTensor) or not isinstance(second, GGUFTensor | TorchTensor):
        return False
    if first.shape != second.shape or first.format != second.format:
        return False
    first_rows, second_rows = first.raw, second.raw
    step = max(1, (1 << 20) // first_rows.shape[1])
    return all(
        np.array_equal(first_rows[start : start + step], second_rows[start : start + step])
        for start in range(0, len(first_rows), step)
    )
