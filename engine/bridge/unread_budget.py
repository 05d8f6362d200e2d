"""UnreadBudget: how much of its answers a client may leave unread before its stream is ended."""

from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

MAX_EACH, MAX_TOTAL = 4 << 20, 256 << 20  # bytes, about, of one request's outputs and of all
_GRACE = 1.0  # seconds: after a pause of the event loop itself every reader is behind for a moment


class UnreadStream(Protocol):
    """A stream as the budget sees it."""

    num_requests: int
    num_unread_bytes: int

    def __hash__(self) -> int:
        """Tell streams apart."""


_StreamT = TypeVar("_StreamT", bound=UnreadStream)


class UnreadBudget(Generic[_StreamT]):
    """Counts what streams hold that nobody has read, those that ended included; all on one event loop."""

    def __init__(self, *, max_each: int = MAX_EACH, max_total: int = MAX_TOTAL) -> None:
        self._max_each, self._max_total = max_each, max_total
        self._streams: WeakSet[_StreamT] = WeakSet()
        self._total = 0  # too much where a stream was thrown away unread, until it is counted again
        self._total_since: float | None = None  # when it was found too much
        self._too_long: WeakKeyDictionary[_StreamT, float | None] = WeakKeyDictionary()  # and since when

    def watch(self, stream: _StreamT) -> None:
        """Count a stream from now on."""
        self._streams.add(stream)

    def count(self, stream: _StreamT, num_bytes: int) -> None:
        """Count bytes that were added to a stream, or read if negative."""
        stream.num_unread_bytes += num_bytes
        self._total += num_bytes
        if stream.num_unread_bytes > self._max_each * stream.num_requests:
            self._too_long.setdefault(stream, None)

    def overflowing(self, now: float) -> list[_StreamT]:
        """Return the streams that must end: too long ones, and the longest while all hold too much."""
        ending = self._find_too_long(now) if self._too_long else []
        if self._total <= self._max_total:
            self._total_since = None
            return ending
        return [*ending, *self._find_longest(now, ending)]

    def _find_too_long(self, now: float) -> list[_StreamT]:
        ending = []
        for stream, since in list(self._too_long.items()):
            if stream.num_unread_bytes <= self._max_each * stream.num_requests:
                del self._too_long[stream]
            elif since is None:
                self._too_long[stream] = now
            elif now - since > _GRACE:
                ending.append(stream)
        return ending

    def _find_longest(self, now: float, ending: list[_StreamT]) -> list[_StreamT]:
        streams = sorted(self._streams, key=lambda stream: -stream.num_unread_bytes)
        self._total = sum(stream.num_unread_bytes for stream in streams)
        self._total_since = self._total_since or now
        longest: list[_StreamT] = []
        left = self._total - sum(stream.num_unread_bytes for stream in ending)
        for stream in streams if now - self._total_since > _GRACE else ():
            if left <= self._max_total:
                break
            if stream not in ending:
                longest.append(stream)
                left -= stream.num_unread_bytes
        return longest
