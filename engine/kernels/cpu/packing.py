"""Weights as the kernels multiply them: tiles of 16 rows, packed once from the stored rows.

Blocks of Q4_0, Q4_1 and Q8_0 keep their bits. Other blocks, and matrices that share a product but not a kind,
become Q8_0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants
from torch import Tensor

from engine.checkpoint.checkpoint import StoredTensor
from engine.kernels.cpu.library import Matrix, MatrixKind, RowsFormat, require_library

LANES = 16
BLOCK = 32
_ALIGNMENT = 64
_REGION_BYTES = 8 << 20

_KINDS = {
    RowsFormat.Q4_0: MatrixKind.Q4,
    RowsFormat.Q4_1: MatrixKind.Q4,
    RowsFormat.Q8_0: MatrixKind.Q8,
    RowsFormat.BF16: MatrixKind.BF16,
    RowsFormat.F32: MatrixKind.F32,
}
_COLUMNS_PER_UNIT = {MatrixKind.Q4: BLOCK, MatrixKind.Q8: BLOCK, MatrixKind.BF16: 2, MatrixKind.F32: 1}
_UNIT_BYTES = {MatrixKind.Q4: 320, MatrixKind.Q8: 544, MatrixKind.BF16: 64, MatrixKind.F32: 64}


class Arena:
    """Zeroed memory on large pages, freed with this object; the system backs it as it is first used.

    Matrices lie one after the other, as a step reads them: most are far smaller than a page of 2 MiB.
    """

    def __init__(self) -> None:
        self._library = require_library()
        self._regions: list[tuple[int, int]] = []  # address, bytes
        self._next = self._end = 0

    def allocate(self, num_bytes: int) -> int:
        """Return the address of that many bytes; raises MemoryError."""
        size = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        if self._next + size > self._end:
            region = max(size, _REGION_BYTES)
            address: int | None = self._library.draftline_allocate(region)
            if address is None:
                raise MemoryError(f"{region:,} bytes for weights or keys and values")
            self._regions.append((address, region))
            self._next, self._end = address, address + region
        self._next += size
        return self._next - size

    def __del__(self) -> None:
        for address, num_bytes in getattr(self, "_regions", ()):
            self._library.draftline_free(address, num_bytes)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in the kernels' layout; its tiles are in the arena it was packed into."""

    struct: Matrix
    num_bytes: int
    bias: Tensor | None


@dataclass(frozen=True)
class Rows:
    """Rows of one format, uint8 [num_rows, bytes per row]."""

    format: RowsFormat
    data: npt.NDArray[np.uint8]
    num_columns: int


@dataclass(frozen=True, kw_only=True)
class FormatRule:
    """Which format a matrix is packed in."""

    plain: RowsFormat  # of what is not in blocks: BF16 or F32
    keeps_blocks: bool  # blocks of 4 and 8 bits stay as they are
    quantize_to: RowsFormat | None = None  # re-encode everything as these blocks

    def format_for(self, tensor: StoredTensor) -> RowsFormat:
        """Choose for one matrix; rows that are no whole blocks stay plain."""
        if tensor.shape[-1] % BLOCK:
            return self.plain
        if self.quantize_to is not None:
            return self.quantize_to
        if not self.keeps_blocks or tensor.format in ("F32", "F16", "BF16"):
            return self.plain
        return RowsFormat.__members__.get(tensor.format, RowsFormat.Q8_0)  # other blocks: nearly lossless


def read_rows(tensors: Sequence[StoredTensor], rule: FormatRule) -> list[Rows]:
    """Read matrices that are multiplied together, as rows of formats of one kind."""
    wanted = [rule.format_for(tensor) for tensor in tensors]
    if len({_KINDS[rows_format] for rows_format in wanted}) > 1:
        wanted = [RowsFormat.Q8_0] * len(wanted)
    return [_rows(tensor, rows_format) for tensor, rows_format in zip(tensors, wanted, strict=True)]


def pack(
    pieces: Sequence[Rows], order: npt.NDArray[np.int64], *, arena: Arena, bias: Tensor | None = None
) -> PackedMatrix:
    """Pack rows as tiles: row i is row order[i] of the pieces one after the other, or zeros for -1.

    `bias` float32 [number of rows of the pieces] follows the same order.
    """
    library = require_library()
    num_columns, kind = pieces[0].num_columns, _KINDS[pieces[0].format]
    num_units = -(-num_columns // _COLUMNS_PER_UNIT[kind])
    num_tiles, tile_bytes = -(-len(order) // LANES), num_units * _UNIT_BYTES[kind]
    tiles = arena.allocate(num_tiles * tile_bytes)
    start = 0
    for piece in pieces:
        rows = np.ascontiguousarray(piece.data)
        addresses = _row_addresses(rows, order - start)
        library.draftline_pack(
            piece.format, addresses.ctypes.data, len(order), num_columns, tile_bytes, tiles
        )
        start += len(rows)
    ordered_bias = None if bias is None else _order_bias(bias, order, num_tiles * LANES)
    struct = Matrix(
        data=tiles,
        bias=None if ordered_bias is None else ordered_bias.data_ptr(),
        kind=kind,
        num_columns=num_columns,
        num_tiles=num_tiles,
        num_units=num_units,
        tile_bytes=tile_bytes,
    )
    return PackedMatrix(struct, num_tiles * tile_bytes, ordered_bias)


def in_order(num_rows: int) -> npt.NDArray[np.int64]:
    """Return the order of a matrix that is packed as it is."""
    return np.arange(num_rows, dtype=np.int64)


def padded_heads(num_heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Return the order that gives each head whole tiles."""
    order = np.full((num_heads, -(-head_dim // LANES) * LANES), -1, dtype=np.int64)
    order[:, :head_dim] = np.arange(num_heads * head_dim).reshape(num_heads, head_dim)
    return order.ravel()


def tiles_in_turn(num_rows: int) -> npt.NDArray[np.int64]:
    """Return the order that puts a tile of the first of two matrices beside that of the second."""
    tiles = np.full((2, -(-num_rows // LANES) * LANES), -1, dtype=np.int64)
    tiles[:, :num_rows] = np.arange(2 * num_rows).reshape(2, num_rows)
    order: npt.NDArray[np.int64] = tiles.reshape(2, -1, LANES).swapaxes(0, 1).ravel()
    return order


def _row_addresses(rows: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return where each of the numbered rows begins, 0 for numbers that are none of them."""
    addresses = np.zeros(len(numbers), dtype=np.uint64)
    mine = (numbers >= 0) & (numbers < len(rows))
    addresses[mine] = rows.ctypes.data + numbers[mine] * rows.shape[1]
    return addresses


def _order_bias(bias: Tensor, order: npt.NDArray[np.int64], size: int) -> Tensor:
    ordered = torch.zeros(size, dtype=torch.float32)
    places = torch.from_numpy(order)
    ordered[: len(order)][places >= 0] = bias[places[places >= 0]]
    return ordered


def _rows(tensor: StoredTensor, rows_format: RowsFormat) -> Rows:
    num_columns = tensor.shape[-1]
    if tensor.format == rows_format.name and hasattr(tensor, "raw"):
        return Rows(rows_format, tensor.raw, num_columns)
    values = tensor.dequantize().reshape(-1, num_columns)
    if rows_format is RowsFormat.F32:
        data = values.numpy().view(np.uint8)
    elif rows_format is RowsFormat.BF16:
        data = values.to(torch.bfloat16).view(torch.uint8).numpy()
    else:
        with np.errstate(
            invalid="ignore"
        ):  # NaN weights become blocks of NaN: requests will fail, not loading
            data = getattr(quants, rows_format.name).quantize_rows(values.numpy())
    return Rows(rows_format, data.reshape(len(values), -1), num_columns)
