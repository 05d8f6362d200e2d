"""What one rendering of a template may do: its budget, and the price of what makes much out of little."""

import re
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MAX_WORK = 1 << 24
"""What one rendering may spend: a character made or printed costs 1, a loop round or a call 64."""

_STEP = 64
_ITEM = 16  # an element of a container
_SCAN_SHIFT = 10  # a step may search the longest string: 1 more for each 1024 characters of it
_MAX_WIDTH = 1000  # of padding, indentation, precision
_MAX_BITS = 4096  # of an integer
_CONTAINERS = (list, tuple, set, frozenset, Mapping, KeysView, ItemsView, ValuesView)
_WIDE_PERCENT_FORMAT = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\d{4}|\*)")
_WIDE_BRACE_FORMAT = re.compile(r":[^{}]*(?:\d{4}|\{)")
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class WorkLimitError(TemplateRuntimeError):
    """A rendering wanted to do more than one rendering may."""


class Work:
    """What a rendering may still spend, and the longest string that it can get at."""

    def __init__(self, variables: Mapping[str, object]) -> None:
        self.left = MAX_WORK
        self.longest = _longest_string(variables)

    def spend(self, units: int) -> None:
        """Pay; raises WorkLimitError when too little is left."""
        self.left -= units
        if self.left < 0:
            raise WorkLimitError("the messages are too long, or it never ends")

    def step(self, units: int = 0) -> None:
        """Pay for a loop round or a call, and for `units` more."""
        self.spend(_STEP + units + (self.longest >> _SCAN_SHIFT))

    def pay_for(self, value: object) -> None:
        """Spend the size of a value just made, so that all that exists has been paid for."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str | bytes):
                self.longest = max(self.longest, len(item))
                self.spend(len(item))
            elif isinstance(item, _CONTAINERS):
                self.spend(_ITEM * len(item))
                waiting.extend(item)
                if isinstance(item, Mapping):
                    waiting.extend(item.values())
            elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
                raise WorkLimitError(f"it makes an integer of more than {_MAX_BITS} bits")


def check_operator(work: Work, operator: str, left: Any, right: Any) -> None:
    """Pay for what an arithmetic operator may make; raises WorkLimitError."""
    if operator == "%" and isinstance(left, str):
        check_percent_format(left)
        _pay_for_fields(work, left.count("%"), right)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_limit("the size of a power", left.bit_length() * abs(right), _MAX_BITS)
    elif operator == "*":
        for sequence, factor in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(factor, int):
                unit = 1 if isinstance(sequence, str) else _ITEM
                work.spend(len(sequence) * max(0, factor) * unit)


def check_method(work: Work, text: str, name: str, arguments: Sequence[Any]) -> None:
    """Pay for what a method of a string may make; raises WorkLimitError."""
    if name in _PADDING_METHODS:
        _check_width(arguments[:1])
    elif name == "replace":
        _pay_for_replacement(work, text, arguments)
    elif name == "join" and arguments:
        _pay_for_join(work, text, arguments[0])


def check_filter(
    work: Work, name: str, value: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Pay for what a filter may make; raises WorkLimitError."""
    given = [*arguments, *options.values()]
    if name == "replace":
        _pay_for_replacement(work, value, given)
    elif name == "join":
        for separator in given or [""]:
            _pay_for_join(work, separator, value)
    elif name == "format":
        check_percent_format(str(value))
        _pay_for_fields(work, str(value).count("%"), given)
    elif name in ("round", "tojson"):
        _check_width(given)
    elif name == "indent":
        widths = [len(item) if isinstance(item, str) else item for item in given]
        _check_width(widths)
        work.spend(str(value).count("\n") * max(width for width in [4, *widths] if isinstance(width, int)))


def check_brace_format(work: Work, text: str, values: object) -> None:
    """Pay for what `str.format` may make; raises WorkLimitError."""
    if _WIDE_BRACE_FORMAT.search(text):
        raise WorkLimitError("it formats to a width of more than three digits")
    _pay_for_fields(work, text.count("{"), values)


def check_percent_format(text: str) -> None:
    """Refuse `%` formats, of strings or dates, that pad to a great width; raises WorkLimitError."""
    if _WIDE_PERCENT_FORMAT.search(text):
        raise WorkLimitError("it formats to a width of more than three digits")


def _pay_for_fields(work: Work, num_fields: int, values: object) -> None:
    """Pay as if each field of a format took all the values."""
    before = work.left
    work.pay_for(values)
    work.spend(num_fields * (before - work.left + _MAX_WIDTH))


def _pay_for_replacement(work: Work, text: Any, arguments: Sequence[Any]) -> None:
    if len(arguments) < 2:
        return  # the call itself fails
    old, new = str(arguments[0]), str(arguments[1])
    work.spend(str(text).count(old) * max(0, len(new) - len(old)))


def _pay_for_join(work: Work, separator: Any, values: Any) -> None:
    if isinstance(values, Iterable):
        items = list(values)
        work.pay_for(items)
        work.spend(len(items) * len(str(separator)))


def _check_width(arguments: Sequence[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int):
            _check_limit("a width or precision", abs(argument), _MAX_WIDTH)


def _check_limit(what: str, value: int, limit: int) -> None:
    if value > limit:
        raise WorkLimitError(f"{what} is {value}, the limit is {limit}")


def _longest_string(value: object) -> int:
    longest = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            longest = max(longest, len(item))
        elif isinstance(item, _CONTAINERS):
            waiting.extend(item)
            if isinstance(item, Mapping):
                waiting.extend(item.values())
    return longest
