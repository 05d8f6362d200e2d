"""Reading a JSON object field by field: strict about what is required, tolerant of what is unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from draftline_client._floats import floats_from_base64, floats_from_numbers
from draftline_client.errors import ProtocolError
from draftline_client.types import RateLimits

T = TypeVar("T")

_KIND_NAMES: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    dict: "an object",
    list: "an array",
}


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What a reply's headers say."""

    request_id: str | None = None
    rate_limits: RateLimits | None = None


NO_ENVELOPE = Envelope()


class Fields:
    """One JSON object of a reply; `extra()` is what nobody has read.

    Every reader raises ProtocolError naming the field when its value has the wrong type; those without
    `optional` also when it is missing or null.
    """

    def __init__(self, value: object, *, path: str = "", envelope: Envelope = NO_ENVELOPE) -> None:
        self._path = path
        self._read: set[str] = set()
        self.envelope = envelope
        self._values: dict[str, Any] = self._checked(value, dict, path)

    def string(self, name: str) -> str:
        return self._required(name, str)

    def integer(self, name: str) -> int:
        return self._required(name, int)

    def number(self, name: str) -> float:
        return self._required(name, float)

    def record(self, name: str, parse: Callable[[Fields], T]) -> T:
        return parse(self._child(self._required(name, dict), name))

    def records(self, name: str, parse: Callable[[Fields], T]) -> tuple[T, ...]:
        values = self._required(name, list)
        return tuple(parse(self._child(value, f"{name}[{index}]")) for index, value in enumerate(values))

    def strings(self, name: str) -> tuple[str, ...]:
        return self._items(name, str, self._required(name, list))

    def integers(self, name: str) -> tuple[int, ...]:
        return self._items(name, int, self._required(name, list))

    def optional_numbers(self, name: str) -> tuple[float | None, ...]:
        """Read a required array whose items may be null."""
        values = self._required(name, list)
        return tuple(self._item(value, float, name, index) for index, value in enumerate(values))

    def optional_string(self, name: str) -> str | None:
        return self._optional(name, str)

    def optional_integer(self, name: str) -> int | None:
        return self._optional(name, int)

    def optional_number(self, name: str) -> float | None:
        return self._optional(name, float)

    def optional_record(self, name: str, parse: Callable[[Fields], T]) -> T | None:
        return self.record(name, parse) if self.has(name) else None

    def optional_records(self, name: str, parse: Callable[[Fields], T]) -> tuple[T, ...]:
        """Read an array of objects; a missing one is empty."""
        return self.records(name, parse) if self.has(name) else ()

    def optional_integers(self, name: str) -> tuple[int, ...] | None:
        return self.integers(name) if self.has(name) else None

    def optional_strings(self, name: str) -> tuple[str, ...] | None:
        return self.strings(name) if self.has(name) else None

    def optional_mappings(self, name: str) -> tuple[Mapping[str, float] | None, ...] | None:
        """Read an optional array of objects or nulls, taken as they are."""
        values = self._optional(name, list)
        if values is None:
            return None
        return tuple(self._item(value, dict, name, index) for index, value in enumerate(values))

    def optional_records_or_nulls(
        self, name: str, parse: Callable[[Fields], T]
    ) -> tuple[T | None, ...] | None:
        """Read an optional array whose items are objects or null."""
        values = self._optional(name, list)
        if values is None:
            return None
        return tuple(
            None if value is None else parse(self._child(value, f"{name}[{index}]"))
            for index, value in enumerate(values)
        )

    def records_or_one(self, name: str, parse: Callable[[Fields], T]) -> tuple[T, ...]:
        """Read an optional array of objects, or one object in its place."""
        self._read.add(name)
        is_one = isinstance(self._values.get(name), dict)
        return (self.record(name, parse),) if is_one else self.optional_records(name, parse)

    def objects(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """Read an optional array of objects, taken as they are; a missing one is empty."""
        return self._items(name, dict, self._optional(name, list) or [])

    def floats(self, name: str) -> Sequence[float]:
        """Read a vector: an array of numbers, or base64 of little-endian float32."""
        value = self._values.get(name)
        self._read.add(name)
        try:
            if isinstance(value, str):
                return floats_from_base64(value)
            return floats_from_numbers(self._items(name, float, self._required(name, list)))
        except (ValueError, OverflowError) as error:
            raise self._error(f"has a vector that cannot be read ({error})", self._place(name)) from error

    def number_cube(self, name: str) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """Read an array of arrays of arrays of numbers."""
        return tuple(
            tuple(
                self._items(f"{name}[{i}][{j}]", float, self._checked(row, list, self._place(name)))
                for j, row in enumerate(self._checked(plane, list, self._place(name)))
            )
            for i, plane in enumerate(self._required(name, list))
        )

    def by_integer(self, parse: Callable[[Fields], T]) -> dict[int, T]:
        """Read all fields as objects whose names are integers."""
        return {self._integer(name): self.record(name, parse) for name in self._values}

    def extra(self) -> dict[str, Any]:
        """Return the fields that were not read, but for nulls, which say nothing.

        `object` only repeats what the record's class says.
        """
        known = self._read | {"object"}
        return {k: v for k, v in self._values.items() if k not in known and v is not None}

    def _error(self, what: str, path: str) -> ProtocolError:
        where = path or "its top level"
        return ProtocolError(
            f"the reply {what} at {where}", field=path or None, request_id=self.envelope.request_id
        )

    def has(self, name: str) -> bool:
        """Tell whether the field is there and not null."""
        self._read.add(name)
        return self._values.get(name) is not None

    def _integer(self, name: str) -> int:
        try:
            return int(name)
        except ValueError:
            raise self._error("has a name that is no integer", self._place(name)) from None

    def _place(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _child(self, value: object, name: str) -> Fields:
        return Fields(value, path=self._place(name), envelope=self.envelope)

    def _required(self, name: str, kind: type[T]) -> T:
        value = self._optional(name, kind)
        if value is None:
            raise self._error("lacks a required field", self._place(name))
        return value

    def _optional(self, name: str, kind: type[T]) -> T | None:
        self._read.add(name)
        value = self._values.get(name)
        return None if value is None else self._checked(value, kind, self._place(name))

    def _items(self, name: str, kind: type[T], values: list[object]) -> tuple[T, ...]:
        return tuple(
            self._checked(value, kind, f"{self._place(name)}[{i}]") for i, value in enumerate(values)
        )

    def _item(self, value: object, kind: type[T], name: str, index: int) -> T | None:
        return None if value is None else self._checked(value, kind, f"{self._place(name)}[{index}]")

    def _checked(self, value: object, kind: type[T], path: str) -> T:
        if kind is float and type(value) is int:
            return cast("T", value)  # left as it is: JSON has one kind of number, and float() can overflow
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = _KIND_NAMES.get(type(value), repr(value))
            raise self._error(f"has {found} in place of {_KIND_NAMES[kind]}", path)
        return value


def parse_object(text: str | bytes, *, envelope: Envelope = NO_ENVELOPE) -> Fields:
    """Read a JSON object.

    Raises ProtocolError when the text is not JSON, too deeply nested, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"the reply is not JSON ({error}); it begins with {text[:80]!r}"
        raise ProtocolError(message, request_id=envelope.request_id) from error
    return Fields(value, envelope=envelope)
