"""Pauses: where speculation has not paid lately, even the thought of it is spared.

Nothing is learned during a pause, so it is short enough that what it misses is small.
"""

from collections.abc import Sequence

_MOST_MODEL_REFUSALS = 6
_FREE_REFUSALS = 4  # within a text that is being copied a few steps find nothing, or too little
_LEAST_MOST_REST, _MOST_MOST_REST = 7, 63
_THOUGHT_SHARE = 0.01  # of the time, which lookups that find nothing may take
_MEMORY = 0.95


class Thought:
    """What a fruitless step of lookups takes, of all requests together: what sets how long they may rest."""

    def __init__(self) -> None:
        self._share = 0.0

    def record(self, thought_seconds: float, step_seconds: float) -> None:
        """Take in a step that looked and drafted nothing."""
        self._share = self._share * _MEMORY + min(1.0, thought_seconds / step_seconds) * (1.0 - _MEMORY)

    @property
    def most_rest(self) -> int:
        """Return the longest rest in steps: more than 7 only where a step takes some hundred microseconds."""
        return min(_MOST_MOST_REST, max(_LEAST_MOST_REST, round(self._share / _THOUGHT_SHARE)))


class LookupPause:
    """Of one request's lookups: after a few refusals in a row one step of rest, then two, and so on."""

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
        rest = min(most_rest, self._num_refusals - _FREE_REFUSALS)
        self._num_steps_left = rest + 1 if rest > 0 else 0

    def reset(self) -> None:
        """Note a draft."""
        self._num_refusals = self._num_steps_left = 0


class ModelPause:
    """Of the draft model for all requests: 1, 3, 7, ... at most 63 steps of rest.

    Only a smaller batch could change the answer at once.
    """

    def __init__(self) -> None:
        self._num_refusals = 0
        self._num_steps_left = 0
        self._num_running = 0

    @property
    def is_on(self) -> bool:
        """True while no draft of the model is considered, but for requests that name its length."""
        return self._num_steps_left > 0

    def begin_step(self, num_running: int) -> None:
        """Count a step, with so many requests running."""
        self._num_steps_left = max(0, self._num_steps_left - 1)
        if num_running < self._num_running:
            self._num_steps_left = self._num_refusals = 0
        self._num_running = num_running

    def record(self, lengths: Sequence[int]) -> None:
        """Take in the lengths that the controller gave to the drafts that the model would have made."""
        if any(lengths):
            self._num_refusals = 0
        elif lengths:
            self._num_refusals = min(_MOST_MODEL_REFUSALS, self._num_refusals + 1)
            self._num_steps_left = 2**self._num_refusals - 1
