"""API keys: what they are called, what they may use, and the file that lists them."""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.interface.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MIN_KEY_CHARS = 8
_MAX_KEYS = 4096
_MAX_FILE_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """What one key may use; None: as much as there is."""

    max_concurrent: int | None = None  # answers that are open at the same time
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers

    @property
    def are_set(self) -> bool:
        """True where anything is limited."""
        return self != KeyLimits()


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key as the server keeps it: never its text."""

    sha256: bytes
    name: str | None = None  # in logs and metrics
    limits: KeyLimits = field(default_factory=KeyLimits)
    weight: float = 1.0  # its share beside other keys while all want more than there is

    @staticmethod
    def of(text: str) -> "ApiKey":
        """Return the record of a key's text; raises ValueError for one that cannot be used."""
        check_key(text)
        return ApiKey(sha256=hash_key(text.encode()))


def hash_key(text: bytes) -> bytes:
    """Return what is kept of a key: it is random and long, so a plain hash says nothing about it."""
    return hashlib.sha256(text).digest()


def check_key(key: str) -> None:
    """Raise ValueError for a key that an Authorization header cannot carry or anybody could guess."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", key):  # RFC 6750's b64token
        raise ValueError("a key may have letters, digits and ._~+/=- only")
    if len(key) < _MIN_KEY_CHARS:
        raise ValueError(f"a key must have at least {_MIN_KEY_CHARS} characters, got {len(key)}")


def read_key_file(path: Path) -> list[ApiKey]:
    """Read `NAME.toml` with a table for each key, or else a list of keys, one a line.

    Raises ConfigError, which never shows a key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        text = content.decode()
        keys = _read_tables(text) if path.suffix == ".toml" else _read_lines(text)
        _check_all(keys)
    except OSError as error:
        raise ConfigError(f"--api-key-file: cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {path} is not UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"--api-key-file: {path}: {error}") from None
    return keys


def _check_all(keys: Sequence[ApiKey]) -> None:
    if not keys:
        raise ValueError("it has no key in it")
    if len(keys) > _MAX_KEYS:
        raise ValueError(f"it has {len(keys)} keys, the limit is {_MAX_KEYS}")
    if len({key.sha256 for key in keys}) < len(keys):
        raise ValueError("it has the same key twice")
    names = [key.name for key in keys if key.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"it has two keys named {twice}")


def _read_lines(text: str) -> list[ApiKey]:
    lines = [line.strip() for line in text.splitlines()]
    return [ApiKey.of(line) for line in lines if line and not line.startswith("#")]


def _read_tables(text: str) -> list[ApiKey]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        position = re.search(r"\(at [^)]*\)$", str(error))  # all else may quote the file, where keys are
        raise ValueError(f"it is not TOML {position[0] if position else ''}".rstrip()) from None
    tables = document.pop("key", [])
    if document or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError("it must have tables [[key]] and nothing else")
    return [_read_table(table, f"key {number}") for number, table in enumerate(tables, 1)]


def _read_table(table: Mapping[str, Any], where: str) -> ApiKey:
    limits = [limit.name for limit in fields(KeyLimits)]
    unknown = set(table) - {"name", "key", "sha256", "weight", *limits}
    if unknown:
        raise ValueError(f"{where} has the unknown entry {min(unknown)}")
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where} must have a name of 1 to 64 letters, digits and ._-")
    for limit in limits:
        _check_number(table.get(limit, 1), f"{name}: {limit}", int)
    weight = table.get("weight", 1.0)
    _check_number(weight, f"{name}: weight", float)
    return ApiKey(
        sha256=_read_hash(table, name),
        name=name,
        limits=KeyLimits(**{limit: table.get(limit) for limit in limits}),
        weight=float(weight),
    )


def _check_number(value: object, what: str, kind: type[int] | type[float]) -> None:
    is_number = isinstance(value, int | kind) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 10**9:  # type: ignore[operator]
        expected = "an integer" if kind is int else "a number"
        raise ValueError(f"{what} must be {expected} above 0, got {value!r}")


def _read_hash(table: Mapping[str, Any], name: str) -> bytes:
    key, sha256 = table.get("key"), table.get("sha256")
    if (key is None) == (sha256 is None):
        raise ValueError(f"{name} must have either sha256 or key")
    if key is not None:
        if not isinstance(key, str):
            raise ValueError(f"{name}: key must be a string")
        check_key(key)
        return hash_key(key.encode())
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name}: sha256 must be 64 hexadecimal digits")
    return bytes.fromhex(sha256)
