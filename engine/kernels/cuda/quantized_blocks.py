"""The blocks of GGUF formats taken apart into unsigned quants and the bytes of their scales.

The blocks are described in ggml's `ggml-common.h`; the `gguf` package's dequantisation is what the tests
compare with.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]

BLOCK_BYTES = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Elements and bytes of a block."""


def take_apart(blocks: Bytes, tensor_format: str) -> tuple[Bytes, Bytes]:
    """Return the quants [blocks, elements] and the scale bytes [blocks, bytes] of blocks [blocks, bytes].

    The scale bytes are in the order of `Scales`: d, or d and m; for K-quants 20 bytes: d, dmin or two zeros,
    and 16 bytes of factors.
    """
    return _READERS[tensor_format](blocks)


def _fields(stored: Bytes, bits: int, group: int) -> Bytes:
    """Read fields of some bits: those of each `group` bytes give 8 / bits runs of `group` elements."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = (stored.reshape(len(stored), -1, 1, group) >> shifts) & np.uint8((1 << bits) - 1)
    runs: Bytes = fields.reshape(len(stored), -1)
    return runs


def _q4_0(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 2:], 4, 16), blocks[:, :2]


def _q4_1(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 4:], 4, 16), blocks[:, :4]


def _fifth_bits(stored: Bytes) -> Bytes:
    bits: Bytes = np.unpackbits(stored, axis=1, bitorder="little") << np.uint8(4)
    return bits


def _q5_0(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6]), blocks[:, :2]


def _q5_1(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8]), blocks[:, :4]


def _q8_0(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return blocks[:, 2:] ^ np.uint8(0x80), blocks[:, :2]


def _q2_k(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 16:80], 2, 32), np.concatenate([blocks[:, 80:], blocks[:, :16]], axis=1)


def _q3_k(blocks: Bytes) -> tuple[Bytes, Bytes]:
    quants = _fields(blocks[:, 32:96], 2, 32) | _fields(blocks[:, :32], 1, 32) << np.uint8(2)
    low = _fields(blocks[:, 96:104], 4, 8)
    high = _fields(blocks[:, 104:108], 2, 4) << np.uint8(4)
    factors = (low | high) - np.uint8(32)  # wraps: the bytes are signed
    return quants, _super_scales(blocks[:, 108:110], factors)


def _q4_k(blocks: Bytes) -> tuple[Bytes, Bytes]:
    return _fields(blocks[:, 16:], 4, 32), _scales_and_mins(blocks)


def _q5_k(blocks: Bytes) -> tuple[Bytes, Bytes]:
    high = _fields(blocks[:, 16:48], 1, 32) << np.uint8(4)
    return _fields(blocks[:, 48:], 4, 32) | high, _scales_and_mins(blocks)


def _q6_k(blocks: Bytes) -> tuple[Bytes, Bytes]:
    high = _fields(blocks[:, 128:192], 2, 32) << np.uint8(4)
    return _fields(blocks[:, :128], 4, 64) | high, _super_scales(blocks[:, 208:], blocks[:, 192:208])


def _super_scales(d: Bytes, factors: Bytes) -> Bytes:
    return np.concatenate([d, np.zeros_like(d), factors], axis=1)


def _scales_and_mins(blocks: Bytes) -> Bytes:
    """Spread the eight scales and eight minima of Q4_K and Q5_K, six bits each, to a byte each."""
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    six, two = np.uint8(0x3F), np.uint8(0x30)
    scales = [first & six, last & np.uint8(0x0F) | first >> np.uint8(2) & two]
    mins = [second & six, last >> np.uint8(4) | second >> np.uint8(2) & two]
    return np.concatenate([blocks[:, :4], *scales, *mins], axis=1)


_READERS: dict[str, Callable[[Bytes], tuple[Bytes, Bytes]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
