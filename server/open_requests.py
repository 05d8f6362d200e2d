"""OpenRequests: what is under way, for those whose key it is under."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.api.errors import ApiError
from server.api.usage import Usage


class Progress(Protocol):
    """An answer on its way."""

    @property
    def usage(self) -> Usage:
        """Token counts up to now."""

    @property
    def has_started(self) -> bool:
        """True once the engine has brought something."""

    def end(self, error: Exception) -> None:
        """End it with an error, after what is here already."""


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """One request of the API, from when the engine has it until it is answered."""

    id: str
    endpoint: str
    tenant: bytes
    progress: Progress
    created: float  # time.time()


class OpenRequests:
    """All that are under way, in the order in which they came; all on one event loop."""

    def __init__(self) -> None:
        self._requests: dict[int, OpenRequest] = {}
        self._numbers = itertools.count()

    def add(self, request: OpenRequest) -> Callable[[], None]:
        """Add a request and return what removes it; ids are the clients' and may be equal."""
        number = next(self._numbers)
        self._requests[number] = request

        def remove() -> None:
            del self._requests[number]

        return remove

    def describe(self, tenant: bytes) -> list[dict[str, object]]:
        """Return a tenant's requests; `position` counts the waiting ones of all tenants that came before."""
        now, position, described = time.time(), 0, []
        for request in self._requests.values():
            is_queued = not request.progress.has_started
            if request.tenant == tenant:
                described.append(_describe(request, now, position if is_queued else None))
            position += is_queued
        return described

    def cancel(self, request_id: str, tenant: bytes) -> int:
        """End the requests of this id and tenant, and return how many there were."""
        found = [one for one in self._requests.values() if one.id == request_id and one.tenant == tenant]
        for request in found:
            request.progress.end(ApiError(499, "the request was cancelled", code="request_cancelled"))
        return len(found)


def _describe(request: OpenRequest, now: float, position: int | None) -> dict[str, object]:
    usage = request.progress.usage
    return {
        "id": request.id,
        "object": "request",
        "endpoint": request.endpoint,
        "state": "running" if position is None else "queued",
        "position": position,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "created": int(request.created),
        "age": round(now - request.created, 3),
    }
