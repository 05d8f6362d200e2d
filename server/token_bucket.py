"""TokenBucket: so much at once, and so much a second in the long run."""

import time
from collections.abc import Callable


class TokenBucket:
    """Holds `capacity` at most and fills at `per_second`; what is taken may exceed what is there.

    Then it is in debt: whoever asks next waits until it is paid.
    """

    def __init__(
        self, *, capacity: float, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity = capacity
        self._per_second = per_second
        self._clock = clock
        self._level = capacity
        self._filled = clock()

    @property
    def level(self) -> float:
        """What is there now; below 0 a debt."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._filled) * self._per_second)
        self._filled = now
        return self._level

    def take(self, amount: float) -> None:
        """Take so much, even if it is not there; a negative amount is given back."""
        self._level = min(self.capacity, self.level - amount)

    def seconds_until(self, amount: float) -> float:
        """Return in how many seconds so much, a full bucket at most, will be there; 0 if it is."""
        missing = min(amount, self.capacity) - self.level
        return max(0.0, missing / self._per_second)
