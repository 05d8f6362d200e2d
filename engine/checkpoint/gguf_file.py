"""GGUF container: the header of a memory-mapped file, every length checked against the file's end.

The `gguf` package's own reader builds an array per string (seconds for a real vocabulary) and, reading past
the end, sees empty arrays where it should fail, so that a corrupt count keeps it busy for ever. This one
reads the header as it is laid out (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and leaves
the enumerations and the quantised formats to the package.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from engine.checkpoint.metadata import shorten
from engine.interface.errors import CheckpointError

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ARRAY_LENGTH = 1 << 22
MAX_HEADER_BYTES = 1 << 29
"""Several times what the largest published models have; more means a corrupt count."""

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, kw_only=True)
class GGUFTensorInfo:
    """Where one tensor lies in the file."""

    name: str
    shape: tuple[int, ...]  # row-major: the file's dimensions reversed
    format: str
    offset: int  # bytes from the start of the file
    num_bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class GGUFFile:
    """A parsed header and the mapped file behind it."""

    path: Path
    metadata: dict[str, object]  # scalars as int, float, bool or str; arrays as lists
    tensors: tuple[GGUFTensorInfo, ...]
    mapped: npt.NDArray[np.uint8]  # the whole file

    def rows(self, tensor: GGUFTensorInfo) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes as [rows, bytes per row]; 1-D tensors as one element per row."""
        num_rows = tensor.shape[0] if len(tensor.shape) == 1 else math.prod(tensor.shape[:-1])
        return self.mapped[tensor.offset : tensor.offset + tensor.num_bytes].reshape(num_rows, -1)


def read_gguf(path: Path) -> GGUFFile:
    """Map a GGUF file and read its header.

    Raises CheckpointError when the file is missing, not GGUF, truncated or corrupt.
    """
    mapped = _map_file(path)
    cursor = _Cursor(mapped, path)
    version = _read_version(cursor)
    tensor_count = cursor.count("tensors", MAX_TENSORS)
    key_count = cursor.count("metadata keys", MAX_KEYS)
    metadata: dict[str, object] = {"GGUF.version": version}
    for _ in range(key_count):
        key = cursor.text()
        if key in metadata:
            raise cursor.corrupt(f"metadata key {shorten(key)} occurs twice")
        metadata[key] = cursor.value(cursor.value_type())
    headers = [_read_tensor_header(cursor) for _ in range(tensor_count)]
    data_start = _align(cursor.position, _alignment(metadata, cursor))
    tensors = tuple(_locate(header, data_start, cursor) for header in headers)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise cursor.corrupt("two tensors have the same name")
    return GGUFFile(path=path, metadata=metadata, tensors=tensors, mapped=mapped)


def _map_file(path: Path) -> npt.NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty; fetch it again")
        return np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be mapped into memory: {error}") from error


class _Cursor:
    """Reads forward through the header and never past the end of the file."""

    def __init__(self, mapped: npt.NDArray[np.uint8], path: Path) -> None:
        self.path = path
        self.position = 0
        self.end = len(mapped)
        self._view = mapped.data

    def corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: corrupt GGUF file: {what}; fetch it again")

    def take(self, num_bytes: int) -> memoryview:
        start = self.position
        if num_bytes > self.end - start:
            raise self.corrupt(f"it ends at byte {self.end}, inside its header (a truncated download?)")
        if start + num_bytes > MAX_HEADER_BYTES:
            raise self.corrupt(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        self.position = start + num_bytes
        return self._view[start : self.position]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def uint64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, what: str, limit: int) -> int:
        number = self.uint64()
        if number > limit:
            raise self.corrupt(f"it claims {number} {what}, more than {limit}")
        return number

    def text(self) -> str:
        try:
            return str(self.take(self.uint64()), "utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"a string before byte {self.position} is not UTF-8") from error

    def value_type(self) -> GGUFValueType:
        number = self.uint32()
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.corrupt(f"metadata of unknown type {number} before byte {self.position}") from None

    def value(self, value_type: GGUFValueType) -> object:
        if value_type == GGUFValueType.STRING:
            return self.text()
        if value_type == GGUFValueType.ARRAY:
            return self.array()
        return self.scalars(value_type, 1)[0]

    def array(self) -> list[object]:
        value_type = self.value_type()
        length = self.count("array elements", MAX_ARRAY_LENGTH)
        if value_type == GGUFValueType.ARRAY:
            raise self.corrupt(f"nested arrays before byte {self.position}")
        if value_type == GGUFValueType.STRING:
            return [self.text() for _ in range(length)]
        return self.scalars(value_type, length)

    def scalars(self, value_type: GGUFValueType, length: int) -> list[object]:
        dtype = np.dtype(_SCALARS[value_type])
        stored = self.take(length * dtype.itemsize)
        if value_type == GGUFValueType.BOOL:
            return [byte != 0 for byte in stored]
        values: list[object] = np.frombuffer(stored, dtype=dtype).tolist()
        return values


def _read_version(cursor: _Cursor) -> int:
    if bytes(cursor.take(min(4, cursor.end))) != b"GGUF":
        raise CheckpointError(f"{cursor.path}: not a GGUF file: it does not begin with the letters GGUF")
    version = cursor.uint32()
    if version not in (2, 3):
        raise CheckpointError(
            f"{cursor.path}: GGUF version {version} is not supported (2 and 3, little-endian, are); "
            "convert the model again with a current llama.cpp"
        )
    return version


def _alignment(metadata: dict[str, object], cursor: _Cursor) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.corrupt(f"general.alignment must be a power of two, got {shorten(alignment)}")
    return alignment


def _align(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment


@dataclass(frozen=True, kw_only=True)
class _TensorHeader:
    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int  # bytes from the start of the data section


def _read_tensor_header(cursor: _Cursor) -> _TensorHeader:
    name = cursor.text()
    num_dimensions = cursor.uint32()
    if not 1 <= num_dimensions <= 4:
        raise cursor.corrupt(f"tensor {shorten(name)} has {num_dimensions} dimensions, not 1 to 4")
    dimensions = struct.unpack(f"<{num_dimensions}Q", cursor.take(8 * num_dimensions))
    return _TensorHeader(
        name=name, shape=dimensions[::-1], type_number=cursor.uint32(), offset=cursor.uint64()
    )


def _locate(header: _TensorHeader, data_start: int, cursor: _Cursor) -> GGUFTensorInfo:
    """Check one tensor against the end of the file."""
    what = f"tensor {shorten(header.name)} of shape {list(header.shape)}"
    try:
        kind = GGMLQuantizationType(header.type_number)
    except ValueError:
        raise CheckpointError(
            f"{cursor.path}: {what} has the unknown format number {header.type_number}; "
            "a newer gguf package may know it"
        ) from None
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    num_elements = math.prod(header.shape)
    if num_elements == 0 or header.shape[-1] % block_size:
        raise cursor.corrupt(f"{what} does not fit blocks of {block_size} elements ({kind.name})")
    if len(header.shape) == 1 and block_size > 1:
        raise cursor.corrupt(f"{what} has one dimension but the block format {kind.name}")
    num_bytes = num_elements // block_size * block_bytes
    offset = data_start + header.offset
    if offset + num_bytes > cursor.end:
        raise CheckpointError(
            f"{cursor.path}: {what} ends at byte {offset + num_bytes}, past the end of the file at "
            f"{cursor.end}; the file is truncated: fetch it again"
        )
    return GGUFTensorInfo(
        name=header.name, shape=header.shape, format=kind.name, offset=offset, num_bytes=num_bytes
    )
