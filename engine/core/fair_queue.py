"""FairQueue: which waiting request is next; tenants take turns by the tokens they were served.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each
tenant's tokens are counted, the waiting one with the fewest goes first, and one that comes back from a pause
is counted as served as much as the least served of those that did not pause.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

from engine.core.request import Request

_MAX_REMEMBERED = 1024  # tenants that pause


class _Entry(NamedTuple):
    """A place in a tenant's queue; the smallest is next."""

    is_new: bool  # what was preempted goes first
    priority: int
    request_id: int
    request: Request


class FairQueue:
    """Waiting requests, and how many of each tenant run; within one by priority, lowest first, then age."""

    def __init__(self) -> None:
        self._queues: dict[bytes, list[_Entry]] = {}
        self._entries: dict[int, _Entry] = {}  # those that count; others in the queues are left over
        self._num_open: dict[bytes, int] = {}  # waiting and running, of tenants that have some
        self._num_running: Counter[bytes] = Counter()
        self._weights: dict[bytes, float] = {}
        self._served: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return iter([entry.request for entry in self._entries.values()])

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._entries

    @property
    def is_shared(self) -> bool:
        """True while more than one tenant waits or runs."""
        return len(self._num_open) > 1

    def add(self, request: Request) -> None:
        """Let a new request wait."""
        if request.tenant not in self._num_open:
            self._resume(request.tenant)
        self._weights[request.tenant] = request.weight
        self.put_back(request)

    def put_back(self, request: Request) -> None:
        """Let a request wait again, with its tenant's count as it is; one that ran comes before new ones."""
        is_new = request.first_run_time is None
        entry = _Entry(is_new, request.priority, request.request_id, request)
        self._entries[request.request_id] = entry
        self._open(request.tenant, 1)
        heapq.heappush(self._queues.setdefault(request.tenant, []), entry)

    def remove(self, request: Request) -> None:
        """Take out a request that will not run."""
        del self._entries[request.request_id]
        self._open(request.tenant, -1)

    def peek(self) -> Request | None:
        """Return the next request; None where none waits."""
        heads = [head for tenant in list(self._queues) if (head := self._head(tenant)) is not None]
        if len(heads) > 1:
            heads.sort(key=self._turn)
        return heads[0].request if heads else None

    def pop(self) -> Request | None:
        """Take out the next request; None where none waits."""
        request = self.peek()
        if request is not None:
            self.remove(request)
        return request

    def started(self, request: Request) -> None:
        """Count a request as running."""
        self._num_running[request.tenant] += 1
        self._open(request.tenant, 1)

    def stopped(self, request: Request) -> None:
        """Count a request as running no more."""
        self._num_running[request.tenant] -= 1
        self._open(request.tenant, -1)

    def charge(self, request: Request, num_tokens: int) -> None:
        """Count tokens of a step as served."""
        self._served[request.tenant] += num_tokens / request.weight

    def charge_in_turn(self, tenant: bytes, served: Sequence[float]) -> None:
        """Count tokens over weights, one after the other as so many charges do: to the last bit the same."""
        self._served[tenant] = reduce(add, served, self._served[tenant])

    def tenant_with_more(self, request: Request) -> bytes | None:
        """Return the tenant that runs most for its weight.

        None if it would run less than the tenant of `request` after giving a place up to it.
        """
        running = {tenant: num_running for tenant, num_running in self._num_running.items() if num_running}
        most = max(running, key=lambda tenant: running[tenant] / self._weights[tenant], default=None)
        if most is None or most == request.tenant:
            return None
        num_mine = self._num_running[request.tenant] + 1
        is_more = (running[most] - 1) / self._weights[most] >= num_mine / request.weight
        return most if is_more else None

    def _turn(self, head: _Entry) -> tuple[float, float, int]:
        """Sort first who was served least; of equals, as after a pause, who runs least."""
        tenant = head.request.tenant
        return self._served[tenant], self._num_running[tenant] / head.request.weight, head.request_id

    def _open(self, tenant: bytes, change: int) -> None:
        self._num_open[tenant] = self._num_open.get(tenant, 0) + change
        if not self._num_open[tenant]:
            del self._num_open[tenant]

    def _resume(self, tenant: bytes) -> None:
        """Let nobody save up what it did not use while others worked."""
        least = min((self._served[active] for active in self._num_open), default=0.0)
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._served.move_to_end(tenant)
        if len(self._served) > _MAX_REMEMBERED:
            self._forget_one()

    def _forget_one(self) -> None:
        pausing = next((tenant for tenant in self._served if tenant not in self._num_open), None)
        if pausing is not None:
            del self._served[pausing]
            self._num_running.pop(pausing, None)
            self._weights.pop(pausing, None)

    def _head(self, tenant: bytes) -> _Entry | None:
        """Return the first entry that counts, without the ones before it."""
        queue = self._queues[tenant]
        while queue and self._entries.get(queue[0].request_id) is not queue[0]:
            heapq.heappop(queue)
        if not queue:
            del self._queues[tenant]
            return None
        return queue[0]
