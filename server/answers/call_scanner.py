"""CallScanner: one call written as a JSON object, read while it grows."""

import json
from collections.abc import Collection
from enum import Enum, auto

ARGUMENT_KEYS = ("arguments", "parameters")

_WHITESPACE = frozenset(" \t\r\n")


class ValueScanner:
    """Finds the end of one JSON value, character by character."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._begun = False

    def ends_before(self, character: str) -> bool:
        """Tell whether a number, true, false or null ends before this character."""
        is_scalar = self._begun and self._depth == 0 and not self._in_string
        return is_scalar and (character in ",}]" or character in _WHITESPACE)

    def push(self, character: str) -> bool:
        """Take in a character; True if the value ends with it."""
        self._begun = True
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
                return self._depth == 0
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False


class _At(Enum):
    """Where the scanner stands in the object."""

    START = auto()
    KEY = auto()  # or the end of an empty object
    COLON = auto()
    VALUE = auto()
    COMMA = auto()  # or the end
    END = auto()


class CallScanner:
    """Reads `{"name": ..., "arguments": {...}}`; keys in any order, others ignored, arguments maybe as text.

    Arguments are given out as soon as the name is known, which must be one of `names`.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name: str | None = None
        self.is_broken = False
        self._names = names
        self._at = _At.START
        self._key = ""
        self._value = ValueScanner()
        self._parts: list[str] = []  # of the present key or value
        self._arguments: list[str] = []  # not given out yet
        self._has_arguments = False

    @property
    def is_complete(self) -> bool:
        """True after the closing brace."""
        return self._at is _At.END

    def push(self, character: str) -> None:
        """Take in the next character; sets `is_broken` where it cannot belong to a call."""
        if self._at is _At.VALUE:
            self._push_value(character)
        elif self._at is _At.KEY and self._parts:
            self._push_key(character)
        elif character not in _WHITESPACE:
            self._push_mark(character)

    def take_arguments(self) -> str:
        """Return the arguments that came since the last time; nothing before the name is known."""
        if self.name is None or not self._arguments:
            return ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _push_mark(self, character: str) -> None:
        at, expected = self._at, {_At.START: "{", _At.COLON: ":"}.get(self._at)
        if at is _At.KEY and character == '"':
            self._parts = ['"']
            self._value = ValueScanner()
            self._value.push('"')
        elif at is _At.COMMA and character == ",":
            self._at = _At.KEY
        elif at in (_At.COMMA, _At.KEY) and character == "}":
            self._end()
        elif at is _At.COLON and self._key in ARGUMENT_KEYS and self._has_arguments:
            self.is_broken = True  # arguments twice
        elif character == expected:
            self._at = _At.KEY if at is _At.START else _At.VALUE
            self._value, self._parts = ValueScanner(), []
        else:
            self.is_broken = True

    def _push_key(self, character: str) -> None:
        self._parts.append(character)
        if self._value.push(character):
            self._key = self._decode()
            self._parts, self._at = [], _At.COLON

    def _push_value(self, character: str) -> None:
        if not self._parts and character in _WHITESPACE:
            return
        if self._value.ends_before(character):
            self._finish_value()
            if not self.is_broken:
                self.push(character)
            return
        self._parts.append(character)
        streams = self._key in ARGUMENT_KEYS and self._parts[0] == "{"
        if streams:
            self._has_arguments = True
            self._arguments.append(character)
        if self._value.push(character):
            self._finish_value()

    def _finish_value(self) -> None:
        self._at = _At.COMMA
        if self._key == "name":
            name = self._decode()
            self.is_broken |= name not in self._names or self.name is not None
            self.name = name
        elif self._key in ARGUMENT_KEYS and self._parts[0] != "{":
            self._take_text_arguments()
        self._parts = []

    def _take_text_arguments(self) -> None:
        """Take arguments that are written as a string of JSON, or null for none."""
        text = self._decode()
        if "".join(self._parts) == "null":
            return
        try:
            is_object = isinstance(json.loads(text), dict)
        except ValueError:
            is_object = False
        self.is_broken |= not is_object
        self._has_arguments = True
        self._arguments.append(text)

    def _end(self) -> None:
        self._at = _At.END
        if self.name is None:
            self.is_broken = True
        elif not self._has_arguments:
            self._arguments.append("{}")

    def _decode(self) -> str:
        """Return the string that the present parts spell; "" for another value."""
        try:
            value = json.loads("".join(self._parts))
        except ValueError:
            self.is_broken = True
            return ""
        return value if isinstance(value, str) else ""
