"""SteadyDecoding: requests that go on together by a token each, in steps that cost hardly more for many.

What the scheduler decides request by request stays the same from one such step to the next but for blocks:
a request needs one, and has one full, once in `block_size` steps. So it is written down once which requests
that is in which step, and all others are left alone.
"""

from collections.abc import Sequence

from engine.core.fair_queue import FairQueue
from engine.core.request import Request
from engine.core.rows import rows_of
from engine.interface.batch import Batch, SamplerOutput, ScheduledChunk
from engine.kv_cache.kv_cache_manager import KVCacheManager

_CHARGE = 2  # tokens: the one computed, the one chosen


class SteadyDecoding:
    """Requests of a step in which each chose a token, in its order, from then on.

    Their tokens, blocks and cached blocks are kept up to date; their counters stand still until settle().
    Launches and commits are counted from the beginning: launch i computes the token at
    `_first_positions[row] + i` of each request.
    """

    def __init__(
        self, requests: Sequence[Request], running: Sequence[Request], kv_cache_manager: KVCacheManager
    ) -> None:
        self.requests = requests
        self.request_ids = tuple([request.request_id for request in requests])
        self.num_launched = self.num_committed = 0
        self._kv_cache_manager = kv_cache_manager
        self._num_settled_in_flight = 0
        self._first_positions = [request.num_computed_tokens for request in requests]
        self._max_launches = min([request.max_total_tokens - request.num_tokens for request in requests])
        self._stop_token_ids = frozenset().union(*{request.stop_token_ids for request in requests})
        self._appends = [request.token_ids.append for request in requests]
        self._served: dict[bytes, list[float]] = {}  # by a launch to each tenant, over its weight
        for request in requests:
            self._served.setdefault(request.tenant, []).append(_CHARGE / request.weight)
        # Rows by the launch, modulo the block size, that computes the first token of a block. Blocks are
        # given in order of arrival and cached in the order of the batch, as in any other step.
        size = kv_cache_manager.block_size
        self._starting: list[list[int]] = [[] for _ in range(size)]
        rows = {request.request_id: row for row, request in enumerate(requests)}
        for request in running:
            if request.request_id in rows:
                self._starting[-request.num_computed_tokens % size].append(rows[request.request_id])
        self._completed = [sorted(starting) for starting in self._starting]

    @property
    def may_go_on(self) -> bool:
        """False once the last token of some request is under way."""
        return self.num_launched < self._max_launches

    def take_blocks(self) -> tuple[tuple[int, int], ...] | None:
        """Return (row, block id) of each block that the next launch needs, which its request has then.

        None, changing nothing, if there are too few. Precondition: may_go_on.
        """
        starting = self._starting[self.num_launched % len(self._starting)]
        if not starting:
            return ()
        manager, requests, first = self._kv_cache_manager, self.requests, self._first_positions
        short = [
            row
            for row in starting
            if len(requests[row].block_table) * manager.block_size <= first[row] + self.num_launched
        ]
        if len(short) > manager.pool.num_free:
            return None
        return tuple([(row, manager.append_block(requests[row])) for row in short])

    def charge(self, queue: FairQueue) -> None:
        """Count the tokens of a launch as served."""
        for tenant, served in self._served.items():
            queue.charge_in_turn(tenant, served)

    def take_in(self, output: SamplerOutput) -> bool:
        """Append a token to each request; False, changing nothing, where one ends with it or is at fault."""
        token_ids = output.token_ids
        if output.faults or self.num_committed + 1 >= self._max_launches:
            return False
        if not self._stop_token_ids.isdisjoint(token_ids) and self._ends_with(token_ids):
            return False
        for append, token_id in zip(self._appends, token_ids, strict=True):
            append(token_id)
        self.num_committed += 1
        for row in self._completed[self.num_committed % len(self._completed)]:
            request = self.requests[row]
            request.num_committed_tokens = len(request.token_ids) - 1
            self._kv_cache_manager.cache_computed_blocks(request)
        return True

    def settle(self) -> None:
        """Bring the requests' counters up to date."""
        in_flight = self.num_launched - self.num_committed
        change, self._num_settled_in_flight = in_flight - self._num_settled_in_flight, in_flight
        for request, first in zip(self.requests, self._first_positions, strict=True):
            request.num_computed_tokens = first + self.num_launched
            request.num_in_flight += change
            request.num_steps_in_flight += change
            if self.num_committed:  # else steps before the first continuation may be under way
                request.num_committed_tokens = len(request.token_ids) - 1

    def as_batch(self) -> Batch:
        """Return what the oldest continuation under way says of each request, to be committed one by one.

        The counters are settled, and no tokens but those of continuations are in flight.
        """
        return Batch(tuple([_decoded_chunk(request) for request in self.requests]))

    def _ends_with(self, token_ids: Sequence[int]) -> bool:
        pairs = zip(self.requests, token_ids, strict=True)
        return any(token_id in request.stop_token_ids for request, token_id in pairs)


def _decoded_chunk(request: Request) -> ScheduledChunk:
    """Return the chunk of the request's last token."""
    last = len(request.token_ids) - 1
    return ScheduledChunk(
        request.request_id, last, (request.token_ids[last],), request.block_ids, rows_of(request)
    )
