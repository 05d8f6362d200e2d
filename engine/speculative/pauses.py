"""Pauses: where speculation has not paid lately, even the thought of it is spared.

Nothing is learned during a pause, so it is short enough that what it misses is small.
"""

from collections.abc import Sequence

_MOST_MODEL_REFUSALS = 6
_FREE_REFUSALS = 4  # within a text that is being copied a few steps find nothing, or too little
_MOST_REST = 7


class LookupPause:
    """Of one request's lookups: after a few refusals in a row one step of rest, then two, at most 7."""

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

    def refuse(self) -> None:
        """Note that there was nothing to verify, or nothing that would have paid."""
        self._num_refusals += 1
        rest = min(_MOST_REST, self._num_refusals - _FREE_REFUSALS)
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
