"""Server-sent events from bytes that are cut anywhere (WHATWG HTML, section 9.2.6)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from server.terminal.backend import AnswerError

MAX_EVENT_BYTES = 8 * 2**20
_LINE_END = re.compile(rb"\r\n|\n|\r(?!$)")  # a carriage return at the end may be half of a line end


@dataclass(frozen=True, slots=True)
class Event:
    """One event that has data."""

    name: str  # "message" if the stream gives none
    data: str


class EventReader:
    """Collects bytes and gives the events that are complete."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""  # of a line that has not ended
        self._name = ""
        self._data: list[bytes] = []
        self._num_bytes = 0  # of the event that has not ended

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes; raises AnswerError for one that is too long."""
        *lines, self._rest = _LINE_END.split(self._rest + data)
        for line in lines:
            self._count(len(line))
            if line:
                self._read_field(line)
            else:
                yield from self._dispatch()
        self._check(self._num_bytes + len(self._rest))

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._check(self._num_bytes)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_event_bytes:
            raise AnswerError(f"the server sent an event of more than {self._max_event_bytes:,} bytes")

    def _read_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")

    def _dispatch(self) -> Iterator[Event]:
        name, data = self._name, self._data
        self._name, self._data, self._num_bytes = "", [], 0
        if data:
            yield Event(name or "message", b"\n".join(data).decode(errors="replace"))
