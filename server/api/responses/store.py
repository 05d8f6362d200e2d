"""ResponseStore: the last responses, in memory, so that a client may go on from one by its id."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass

from server.api.json_object import Json

MAX_BYTES = 1 << 28
"""Of all that is kept, whatever the number of responses."""


@dataclass(frozen=True, kw_only=True)
class StoredResponse:
    """A response, and the conversation up to its end."""

    tenant: bytes
    response: Json
    messages: list[Json]
    num_bytes: int


class ResponseStore:
    """Keeps the last `capacity` responses; a tenant sees its own only."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()  # a large answer is put together on a worker thread

    def put(self, tenant: bytes, response: Json, messages: list[Json]) -> None:
        """Keep a response; the oldest ones make room."""
        num_bytes = len(json.dumps([response, messages]))
        stored = StoredResponse(tenant=tenant, response=response, messages=messages, num_bytes=num_bytes)
        with self._lock:
            self._stored[response["id"]] = stored
            self._num_bytes += num_bytes
            while self._stored and (len(self._stored) > self.capacity or self._num_bytes > MAX_BYTES):
                self._num_bytes -= self._stored.popitem(last=False)[1].num_bytes

    def find(self, tenant: bytes, response_id: str) -> StoredResponse | None:
        """Return a response of this tenant."""
        stored = self._stored.get(response_id)
        return stored if stored is not None and stored.tenant == tenant else None

    def delete(self, tenant: bytes, response_id: str) -> bool:
        """Forget a response; False if the tenant has none of this id."""
        with self._lock:
            if self.find(tenant, response_id) is None:
                return False
            self._num_bytes -= self._stored.pop(response_id).num_bytes
            return True
