"""When a request is to run: its caller's turn, its priority, and until when anybody wants it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from engine.interface.outputs import GenerationRequest
from server.api.errors import ApiError
from server.api.schemas import ScheduledBody
from server.auth import Caller


def scheduled(
    requests: Sequence[GenerationRequest], body: ScheduledBody, caller: Caller
) -> tuple[GenerationRequest, ...]:
    """Return the requests as those of their caller."""
    if not (caller.tenant or body.priority or body.max_queue_ms):
        return tuple(requests)
    patience = None if body.max_queue_ms is None else body.max_queue_ms / 1000.0
    return tuple(
        [
            replace(
                request,
                tenant=caller.tenant,
                weight=caller.weight,
                priority=body.priority,
                max_queue_seconds=patience,
            )
            for request in requests
        ]
    )


class Endable(Protocol):
    """What a deadline ends."""

    def end(self, error: Exception) -> None:
        """End it with an error."""


class Timer(Protocol):
    """What is to happen later."""

    def cancel(self) -> None:
        """Let it not happen."""


class Deadline:
    """Until when an answer must be complete, if a request says so."""

    def __init__(self, milliseconds: int | None, *, arrived: float) -> None:
        self._milliseconds = milliseconds
        self._arrived = arrived  # time.perf_counter()

    def watch(self, work: Endable) -> Timer:
        """End `work` with an error when the time is over."""
        if self._milliseconds is None:
            return _NEVER
        left = self._arrived + self._milliseconds / 1000.0 - time.perf_counter()
        message = f"the answer was not complete after {self._milliseconds} ms, which is deadline_ms"
        error = ApiError(504, message, kind="timeout_error", code="deadline_exceeded")
        return asyncio.get_running_loop().call_later(max(0.0, left), work.end, error)


class _Never:
    def cancel(self) -> None:
        """Do nothing."""


_NEVER = _Never()


def queued_too_long(queue_seconds: float, *, retry_after: float) -> ApiError:
    """Return the answer to a request that did not start within max_queue_ms."""
    message = f"the request waited for {queue_seconds * 1000:.0f} ms, longer than max_queue_ms"
    return ApiError(
        503, message, kind="service_unavailable_error", code="queue_timeout", retry_after=retry_after
    )
