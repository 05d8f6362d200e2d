"""The door: refuses early what the queue cannot hold, and says when to come back."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.interface.stats import EngineStats
from server.api.errors import queue_full

_MAX_RETRY_AFTER = 60.0
_RETRY_AFTER_UNMEASURED = 5.0


class ServiceRate:
    """Choices finished per second, over the last `window` of them."""

    def __init__(self, *, window: int = 64, clock: Callable[[], float] = time.monotonic) -> None:
        self._finish_times: deque[float] = deque(maxlen=window)
        self._clock = clock

    def record(self) -> None:
        """Count one finished choice."""
        self._finish_times.append(self._clock())

    def seconds_for(self, num_choices: float) -> float:
        """Estimate how long it takes until `num_choices` more have finished, 1 to 60 seconds."""
        if len(self._finish_times) < 2:
            return _RETRY_AFTER_UNMEASURED
        # Up to now, not up to the last one: a server that finishes nothing gets slower every second.
        elapsed = self._clock() - self._finish_times[0]
        seconds = num_choices * elapsed / (len(self._finish_times) - 1)
        return min(max(seconds, 1.0), _MAX_RETRY_AFTER)


class Admission:
    """Refuses a request before its body is read when the engine would have to refuse it afterwards.

    The engine counts the choices of what is submitted; this counts the bodies on their way there too,
    so that no more of them are in memory than could be served.
    """

    def __init__(self, *, max_open: int, rate: ServiceRate | None = None) -> None:
        self.max_open = max_open  # choices that may run or wait
        self.rate = rate or ServiceRate()
        self._num_preparing = 0

    @contextmanager
    def preparing(self, stats: EngineStats) -> Iterator[None]:
        """Hold one place while a body is read and tokenised; raises ApiError 429 when there is none."""
        num_open = stats.num_requests_running + stats.num_requests_waiting + self._num_preparing
        if num_open >= self.max_open:
            raise queue_full(
                f"the queue is full: {num_open} requests are open, the limit is {self.max_open}",
                # Everybody who is refused comes back: by then half of the queue should be free.
                retry_after=self.rate.seconds_for(num_open / 2),
            )
        self._num_preparing += 1
        try:
            yield
        finally:
            self._num_preparing -= 1
