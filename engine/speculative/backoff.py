"""Backoff: where speculation has not paid lately, even asking whether it would is spared for some steps.

Nothing is learned meanwhile, so a rest is short enough that what it misses is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_MODEL_REFUSALS = 6
_FREE_REFUSALS = 4  # within a text that is being copied a few steps find nothing, or too little
_LEAST_MOST_REST, _MOST_MOST_REST = 7, 63
_MOST_DOUBLINGS = 6
_LOOKUP_SHARE = 0.01  # of the time, which lookups that find nothing may take
_MEMORY = 0.95


class LookupOverhead:
    """What share of a step fruitless lookups of all requests would take: it sets how long they may rest."""

    def __init__(self) -> None:
        self._share = 0.0

    def record(
        self, lookup_seconds: float, step_seconds: float, *, num_looked: int = 1, num_requests: int = 1
    ) -> None:
        """Take in a step in which so many of the requests looked, and nothing was drafted."""
        share = min(1.0, lookup_seconds / num_looked * num_requests / step_seconds)
        self._share = self._share * _MEMORY + share * (1.0 - _MEMORY)

    @property
    def most_rest(self) -> int:
        """Return the longest rest in steps: more than 7 only where a step takes some hundred microseconds."""
        return min(_MOST_MOST_REST, max(_LEAST_MOST_REST, round(self._share / _LOOKUP_SHARE)))


class LookupBackoff:
    """Of one request's lookups: after a few refusals in a row one step of rest, then two, four, and so on."""

    __slots__ = ("_num_refusals", "_num_steps_left")

    def __init__(self) -> None:
        self._num_refusals = 0
        self._num_steps_left = 0

    @property
    def is_on(self) -> bool:
        """True while nothing is looked up."""
        return self._num_steps_left > 0

    def begin_step(self) -> None:
        """Count a step."""
        if self._num_steps_left:
            self._num_steps_left -= 1

    def refuse(self, *, most_rest: int = _LEAST_MOST_REST) -> None:
        """Note that there was nothing to verify, or nothing that would have paid."""
        self._num_refusals += 1
        num_doublings = self._num_refusals - _FREE_REFUSALS - 1
        if num_doublings >= 0:
            self._num_steps_left = 1 + min(most_rest, 2 ** min(num_doublings, _MOST_DOUBLINGS))

    def reset(self) -> None:
        """Note a draft."""
        self._num_refusals = self._num_steps_left = 0


class ModelBackoff:
    """Of the draft model for all requests: 1, 3, 7, ... at most 63 steps of rest.

    A smaller batch could change the answer at once: batches up to 1, 3, 7, 15, ... requests rest apart.
    """

    def __init__(self) -> None:
        self._rests: dict[int, _Rest] = {}
        self._present = _Rest()

    @property
    def is_on(self) -> bool:
        """True while no draft of the model is considered, but for requests that name its length."""
        return self._present.num_steps_left > 0

    def begin_step(self, num_running: int) -> None:
        """Count a step, with so many requests running."""
        self._present = self._rests.setdefault(num_running.bit_length(), _Rest())
        self._present.num_steps_left = max(0, self._present.num_steps_left - 1)

    def record(self, lengths: Sequence[int]) -> None:
        """Take in the lengths that the controller gave to the drafts that the model would have made."""
        if any(lengths):
            self._present.num_refusals = 0
        elif lengths:
            self._present.num_refusals = min(_MOST_MODEL_REFUSALS, self._present.num_refusals + 1)
            self._present.num_steps_left = 2**self._present.num_refusals - 1


@dataclass(slots=True)
class _Rest:
    num_refusals: int = 0
    num_steps_left: int = 0
