"""The door: refuses early what the queue or the memory cannot hold, and says when to come back."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.interface.stats import EngineStats
from server.api.errors import ApiError, queue_full

_MAX_RETRY_AFTER = 60.0
_RETRY_AFTER_UNMEASURED = 5.0


class ServiceRate:
    """Choices finished per second in which there was work, over the last `window` of them."""

    def __init__(self, *, window: int = 64, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_open = 0
        self._busy_seconds = 0.0  # up to the last time that the number of open choices became 0
        self._busy_since = 0.0
        self._finish_times: deque[float] = deque(maxlen=window)  # by the clock that stands still without work

    def begin(self, num_choices: int) -> None:
        """Count choices that were submitted."""
        if self._num_open == 0:
            self._busy_since = self._clock()
        self._num_open += num_choices

    def finish(self) -> None:
        """Count one finished choice."""
        self._finish_times.append(self._busy_clock())
        self.abandon(1)

    def abandon(self, num_choices: int) -> None:
        """Count choices that ended without being finished."""
        self._num_open -= num_choices
        if self._num_open == 0 and num_choices:
            self._busy_seconds += self._clock() - self._busy_since

    def seconds_for(self, num_choices: float) -> float:
        """Estimate how long it takes until `num_choices` more have finished, 1 to 60 seconds."""
        if len(self._finish_times) < 2:
            return _RETRY_AFTER_UNMEASURED
        # Up to now, not up to the last one: a server that finishes nothing gets slower every second.
        elapsed = self._busy_clock() - self._finish_times[0]
        seconds = num_choices * elapsed / (len(self._finish_times) - 1)
        return min(max(seconds, 1.0), _MAX_RETRY_AFTER)

    def _busy_clock(self) -> float:
        running = self._clock() - self._busy_since if self._num_open else 0.0
        return self._busy_seconds + running


class Admission:
    """Refuses a request before its body is read when the engine would have to refuse it afterwards.

    The engine counts the choices of what is submitted; this counts the requests that are being prepared, too,
    from when their body is whole: a slow sender holds no place.
    """

    def __init__(self, *, max_open: int, rate: ServiceRate | None = None) -> None:
        self.max_open = max_open  # choices that may run or wait
        self.rate = rate or ServiceRate()
        self._num_preparing = 0

    def check(self, stats: EngineStats) -> None:
        """Raise ApiError 429 when there is no place."""
        num_open = self._num_open(stats)
        if num_open >= self.max_open:
            raise self.refusal(
                f"the queue is full: {num_open} requests are open, the limit is {self.max_open}", stats
            )

    @contextmanager
    def preparing(self, stats: EngineStats) -> Iterator[None]:
        """Hold one place while a request is checked and tokenised; raises ApiError 429 when there is none."""
        self.check(stats)
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1

    def refusal(self, message: str, stats: EngineStats, *, num_choices: int = 1) -> ApiError:
        """Return the 429 for a request of so many choices, with the time to come back.

        Everybody who is refused comes back: by then half of the queue should be free, and room for this one.
        """
        num_open = self._num_open(stats)
        num_awaited = max(num_open / 2, num_open + num_choices - self.max_open)
        return queue_full(message, retry_after=self.rate.seconds_for(num_awaited))

    def _num_open(self, stats: EngineStats) -> int:
        return stats.num_requests_running + stats.num_requests_waiting + self._num_preparing


class BodyBudget:
    """Bytes of bodies that may be held at once, beyond a small part of each that is free.

    A body costs several times its bytes once it is parsed, and tokenising it more.
    """

    FREE_BYTES = 65_536

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    @contextmanager
    def holding(self) -> Iterator["HeldBytes"]:
        """Count what one body holds, until the block ends."""
        held = HeldBytes(self)
        try:
            yield held
        finally:
            self.num_bytes -= held.num_counted

    def take(self, num_bytes: int) -> None:
        """Count so many bytes more; raises ApiError 429 when they are too many."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise ApiError(
                429,
                f"large bodies are being read: together they may have {self._max_bytes} bytes",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=1.0,
            )
        self.num_bytes += num_bytes


class HeldBytes:
    """What one body holds of a budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self.num_counted = 0
        self._budget = budget

    def grow_to(self, num_bytes: int) -> None:
        """Count a body that has so many bytes by now; raises ApiError 429."""
        more = num_bytes - BodyBudget.FREE_BYTES - self.num_counted
        if more > 0:
            self._budget.take(more)
            self.num_counted += more
