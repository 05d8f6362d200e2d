"""Server-sent events, decoded as the bytes arrive (WHATWG HTML, section 9.2.6).

`id` and `retry` fields are read over: they serve reconnection, and a generation cannot be resumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from draftline_client.errors import ProtocolError

MAX_EVENT_BYTES = 8 * 2**20
"""Longest line, and longest data of one event, before the stream is refused."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One dispatched event."""

    data: str
    name: str = "message"


class EventDecoder:
    """Turns bytes, split anywhere, into events; an event without its closing blank line is never given."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the line that has not ended yet
        self._after_carriage_return = False  # a line feed that comes next belongs to the line end before it
        self._at_start = True
        self._name = ""
        self._data: list[str] = []
        self._num_data_bytes = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes; exhaust it before the next call.

        Raises ProtocolError when a line or an event is longer than the limit.
        """
        if not data:
            return
        if self._after_carriage_return:
            data = data.removeprefix(b"\n")
        self._after_carriage_return = data.endswith(b"\r")
        head, *tails = _LINE_END.split(data)
        self._extend_line(head)
        for tail in tails:
            yield from self._end_line()
            self._extend_line(tail)

    def _extend_line(self, piece: bytes) -> None:
        self._check_length(len(self._line) + len(piece), "line")
        self._line += piece

    def _check_length(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._max_event_bytes:
            raise ProtocolError(f"the stream holds a {what} of more than {self._max_event_bytes} bytes")

    def _end_line(self) -> Iterator[Event]:
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        if line:
            self._read_field(line)
        else:
            yield from self._dispatch()

    def _read_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")  # a comment has the empty name
        value = value.removeprefix(b" ")
        if name == b"data":
            self._num_data_bytes += len(value) + 1
            self._check_length(self._num_data_bytes, "data field")
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self) -> Iterator[Event]:
        data, name = "\n".join(self._data), self._name
        self._data, self._name, self._num_data_bytes = [], "", 0
        if data:
            yield Event(data=data, name=name or "message")
