"""FairTurns: who may do slow work next, so that no tenant's work holds up another's."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from server.api.errors import queue_full
from server.token_bucket import TokenBucket

_MAX_WAITING, _MAX_WAITING_EACH = 256, 32
_BURST_SECONDS = 30.0  # of work that a tenant may do at once
_FREE_SECONDS = 0.25  # of each piece of work: what everybody's takes
_SHARE = 0.25  # of one worker, in the long run


class _Waiter(NamedTuple):
    tenant: bytes
    turn: "asyncio.Future[None]"


class FairTurns:
    """Gives `num_turns` turns at a time, of which one tenant has all but one at most.

    The tenant whose work was slow for least time goes first. One that used more than its share of that is
    refused until its debt is paid. `work` is what errors call it. All on one event loop.
    """

    def __init__(
        self,
        num_turns: int,
        *,
        work: str = "new grammars",
        max_waiting: int = _MAX_WAITING,
        max_waiting_each: int = _MAX_WAITING_EACH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._max_waiting, self._max_waiting_each = work, max_waiting, max_waiting_each
        self._num_free = num_turns
        self._max_each = max(1, num_turns - 1)
        self._clock = clock
        self._running: Counter[bytes] = Counter()
        self._waiting: list[_Waiter] = []
        self._budgets: dict[bytes, TokenBucket] = {}

    @asynccontextmanager
    async def turn(self, tenant: bytes) -> AsyncIterator[None]:
        """Wait for a turn and hold it while the block runs; raises ApiError 429."""
        self._check(tenant)
        waiter = _Waiter(tenant, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._give_turns()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        started = self._clock()
        try:
            yield
        finally:
            self._budget(tenant).take(max(0.0, self._clock() - started - _FREE_SECONDS))
            self._end(tenant)

    def _check(self, tenant: bytes) -> None:
        num_mine = sum(waiter.tenant == tenant for waiter in self._waiting)
        if num_mine >= self._max_waiting_each or len(self._waiting) >= self._max_waiting:
            message = f"{len(self._waiting)} {self._work} wait already, {num_mine} of them yours"
            raise queue_full(message, retry_after=5.0)
        wait = self._budget(tenant).seconds_until(0.0)
        if wait > 0.0:
            message = f"{self._work} of yours took too long, all together"
            raise queue_full(message, retry_after=wait)

    def _budget(self, tenant: bytes) -> TokenBucket:
        if tenant not in self._budgets:
            self._budgets[tenant] = TokenBucket(capacity=_BURST_SECONDS, per_second=_SHARE, clock=self._clock)
        return self._budgets[tenant]

    def _leave(self, waiter: _Waiter) -> None:
        """Take back a turn that came at the very moment of leaving, or the place in the queue."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        else:
            self._end(waiter.tenant)

    def _end(self, tenant: bytes) -> None:
        self._num_free += 1
        self._running[tenant] -= 1
        self._give_turns()

    def _give_turns(self) -> None:
        while self._num_free and (waiter := self._next()) is not None:
            self._waiting.remove(waiter)
            self._num_free -= 1
            self._running[waiter.tenant] += 1
            waiter.turn.set_result(None)

    def _next(self) -> _Waiter | None:
        """Return who is next: of tenants that have worked equally, who came first."""
        candidates = [
            one
            for one in self._waiting
            if self._running[one.tenant] < self._max_each and not one.turn.cancelled()
        ]
        return max(candidates, key=lambda one: self._budget(one.tenant).level, default=None)
