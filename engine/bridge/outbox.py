"""Outbox: what the engine thread has for one event loop, which it wakes no more often than it must.

Waking the loop for each token of a fast stream takes a core from the kernels hundreds of times a second.
Outputs that wait are delivered by a timer of the loop itself, so no long step can hold them up.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Outbox(Generic[_T]):
    """Delivers at once what is urgent, with all that waits; else once in `interval` seconds."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Sequence[_T]], None], *, interval: float
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._interval = interval
        self._waiting: deque[_T] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, items: Sequence[_T], *, is_urgent: bool) -> bool:
        """Take items from the engine thread; False if the loop is closed."""
        self._waiting.extend(items)
        # The loop drops its timer before it looks for items: one of the two sides always sees the other.
        if self._timer is not None and not is_urgent:
            return not self._loop.is_closed()
        try:
            self._loop.call_soon_threadsafe(self.flush)
        except RuntimeError:
            return False
        return True

    def flush(self) -> None:
        """Deliver all that waits; belongs to the loop's thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if items:
            self._deliver(items)
            if self._interval > 0.0:
                self._timer = self._loop.call_later(self._interval, self.flush)
