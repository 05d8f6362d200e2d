"""Vectors of float32 as the wire has them, read into arrays of the standard library."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence


def floats_from_base64(text: str) -> array[float]:
    """Read base64 of little-endian float32; raises ValueError."""
    values = array("f")
    values.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def floats_from_numbers(values: Sequence[float]) -> array[float]:
    """Round numbers to float32; raises OverflowError for one that is too large."""
    return array("f", values)
