"""A matrix of a GGUF file on the device, as it is stored there (`quantized_formats` says how)."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.cuda.quantized_blocks import BLOCK_BYTES, Bytes, take_apart
from engine.kernels.cuda.quantized_formats import (
    FORMATS,
    ROW_PADDING,
    ROW_TILE,
    QuantizedFormat,
)

_ROWS_AT_ONCE = 16 * ROW_PADDING  # packed at a time: temporaries of a few bytes a weight


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix [num_parts * num_rows, num_columns]; each part is padded to whole tiles by itself.

    R row tiles (of all parts), S steps. Padding has scales of zero.
    """

    format: str
    num_rows: int  # of each part
    num_columns: int
    num_parts: int  # 2: gate and up
    low: Tensor  # int16 [R, low tiles, 16, width]
    high: Tensor | None  # int16 [R, high tiles, 16, width]
    scales: Tensor  # int32 [R, S, words, 16]

    @property
    def layout(self) -> QuantizedFormat:
        """How the words are laid out."""
        return FORMATS[self.format]

    @property
    def num_steps(self) -> int:
        """Steps along K, the last filled up with zeros."""
        return self.scales.shape[1]

    @property
    def part_tiles(self) -> int:
        """Row tiles of each part."""
        return self.scales.shape[0] // self.num_parts

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        tensors = (self.low, self.scales) if self.high is None else (self.low, self.high, self.scales)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, device: torch.device) -> "QuantizedMatrix":
        """Return a copy on the device."""
        return replace(
            self,
            low=self.low.to(device),
            high=None if self.high is None else self.high.to(device),
            scales=self.scales.to(device),
        )


def pack(rows: Bytes, tensor_format: str, *, num_parts: int = 1) -> QuantizedMatrix:
    """Rearrange the blocks of rows [num_parts * N, bytes per row]; no bit of a weight is lost.

    Matrices that are multiplied together are rows one after the other, so they must be of one format. Raises
    ValueError for another format than those of `FORMATS`, or rows that are no whole blocks or parts.
    """
    if tensor_format not in FORMATS:
        raise ValueError(f"format {tensor_format} is not multiplied as stored, only {', '.join(FORMATS)}")
    block_size, block_bytes = BLOCK_BYTES[tensor_format]
    if len(rows) % num_parts or rows.shape[1] % block_bytes:
        raise ValueError(f"{rows.shape} bytes are no {num_parts} parts of whole {tensor_format} blocks")
    num_rows = len(rows) // num_parts
    pieces = [
        _pack_tiles(rows[start : min(start + _ROWS_AT_ONCE, end)], tensor_format)
        for end in range(num_rows, len(rows) + 1, num_rows)
        for start in range(end - num_rows, end, _ROWS_AT_ONCE)
    ]
    low, high, scales = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return QuantizedMatrix(
        format=tensor_format,
        num_rows=num_rows,
        num_columns=rows.shape[1] // block_bytes * block_size,
        num_parts=num_parts,
        low=torch.from_numpy(low.view(np.int16)),
        high=torch.from_numpy(high.view(np.int16)) if FORMATS[tensor_format].high_bits else None,
        scales=torch.from_numpy(scales.view(np.int32)),
    )


def _pack_tiles(
    rows: Bytes, tensor_format: str
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """Pack some rows of a part; the last ones of it are padded."""
    layout = FORMATS[tensor_format]
    padding = -len(rows) % ROW_PADDING
    blocks = rows.reshape(-1, BLOCK_BYTES[tensor_format][1])
    quants, scales = (
        np.pad(part.reshape(len(rows), -1), ((0, padding), (0, 0)))
        for part in take_apart(blocks, tensor_format)
    )
    low = _words(quants & np.uint8((1 << layout.low_bits) - 1), layout.low_bits, layout)
    high = low[:0]
    if layout.high_bits:
        high = _words(quants >> np.uint8(layout.low_bits), layout.high_bits, layout)
    num_steps = -(-quants.shape[1] // layout.step)
    return low, high, _scale_words(scales, num_steps, layout.num_scale_words)


def _words(quants: Bytes, bits: int, layout: QuantizedFormat) -> npt.NDArray[np.uint16]:
    """Pack [N, K] as words [N / 16, tiles, 16, width]; field p of a word is of block p of the tile."""
    padded = np.pad(quants, ((0, 0), (0, -quants.shape[1] % layout.step)))
    fields = padded.reshape(len(quants) // ROW_TILE, ROW_TILE, -1, 16 // bits, layout.width)
    shifts = np.arange(0, 16, bits, dtype=np.uint16)[:, None]
    words = np.bitwise_or.reduce(fields.astype(np.uint16) << shifts, axis=3)
    return np.ascontiguousarray(words.swapaxes(1, 2))


def _scale_words(scales: Bytes, num_steps: int, num_words: int) -> npt.NDArray[np.uint32]:
    """Lay the scale bytes [N, bytes] out as words [N / 16, steps, words, 16]."""
    padded = np.pad(scales, ((0, 0), (0, num_steps * num_words * 4 - scales.shape[1])))
    words = np.ascontiguousarray(padded).view(np.uint32).reshape(-1, ROW_TILE, num_steps, num_words)
    return np.ascontiguousarray(words.transpose(0, 2, 3, 1))
