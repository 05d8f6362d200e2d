"""Metadata: typed access to what a model file says about itself."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from engine.interface.errors import CheckpointError

MAX_INTEGER = 2**31 - 1
"""No size, count or token id of a model is larger; anything above is a corrupt file."""


_T = TypeVar("_T")


class Metadata:
    """Key-value pairs of one file; every complaint names the file and the key.

    A JSON null counts as a missing key. Raises CheckpointError for a value of another type than asked for.
    """

    def __init__(self, values: Mapping[str, object], *, path: Path) -> None:
        self.path = path
        self.values = values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def find(self, key: str) -> object | None:
        """Return the value as it was read, or None."""
        return self.values.get(key)

    def find_integer(self, key: str) -> int | None:
        """Return an integer between -1 and 2**31 - 1, or None where the key is missing."""
        value = self.find(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, "an integer", value)
        if not -1 <= value <= MAX_INTEGER:
            raise self.error(key, f"an integer between -1 and {MAX_INTEGER}", value)
        return value

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Return an integer; without a default the key is required."""
        return self._required(key, self.find_integer(key), default)

    def find_real(self, key: str) -> float | None:
        """Return a finite number, or None where the key is missing."""
        value = self.find(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, "a finite number", value)
        return number

    def real(self, key: str, *, default: float | None = None) -> float:
        """Return a finite number; without a default the key is required."""
        return self._required(key, self.find_real(key), default)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def find_text(self, key: str) -> str | None:
        """Return a string, or None where the key is missing."""
        value = self.find(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """Return a string; without a default the key is required."""
        return self._required(key, self.find_text(key), default)

    def find_list(self, key: str) -> list[object] | None:
        """Return a list whose elements are unchecked, or None where the key is missing."""
        value = self.find(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(key, "a list", value)
        return value

    def find_section(self, key: str) -> "Metadata | None":
        """Return a nested object, or None where the key is missing."""
        value = self.find(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object", value)
        return Metadata(value, path=self.path)

    def error(self, key: str, expected: str, value: object) -> CheckpointError:
        """Build the error for a value that is not what it should be."""
        return CheckpointError(f"{self.path}: {key} must be {expected}, got {shorten(value)}")

    def _required(self, key: str, value: _T | None, default: _T | None) -> _T:
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.path}: {key} is missing; the file is incomplete or of another kind")
        return default


def shorten(value: object) -> str:
    """Describe a value from a file in at most 80 characters."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:80]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_json(path: Path, *, max_bytes: int) -> Metadata:
    """Read a JSON object from a file.

    Raises CheckpointError when the file is missing, larger than `max_bytes`, or not a JSON object.
    """
    values = _read_value(path, max_bytes)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {shorten(values)}")
    return Metadata(values, path=path)


def read_json_list(path: Path, *, max_bytes: int) -> list[object]:
    """Read a JSON list from a file; raises CheckpointError as read_json() does."""
    values = _read_value(path, max_bytes)
    if not isinstance(values, list):
        raise CheckpointError(f"{path}: must hold a JSON list, got {shorten(values)}")
    return values


def _read_value(path: Path, max_bytes: int) -> object:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{path}: {size} bytes, more than the {max_bytes} that such a file may have"
            )
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not valid JSON ({shorten(str(error))}); fetch the file again"
        ) from error
    return value
