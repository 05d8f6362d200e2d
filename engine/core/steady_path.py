"""SteadyPath: from which step on the next ones are continuations, and when that is over."""

from collections import deque
from collections.abc import Sequence

from engine.core.fair_queue import FairQueue
from engine.core.request import Request
from engine.core.schedule import Claim, Schedule
from engine.core.steady_decoding import SteadyDecoding
from engine.core.step_output import StepTokens
from engine.interface.batch import Batch, Continuation, SamplerOutput, ScheduledChunk
from engine.kv_cache.kv_cache_manager import KVCacheManager


class SteadyPath:
    """The requests that decode steadily, while they do, and the continuations that are under way.

    Whoever changes which requests run, or reads their counters, calls leave() or settle() first.
    """

    def __init__(self, kv_cache_manager: KVCacheManager) -> None:
        self._kv_cache_manager = kv_cache_manager
        self._decoded: list[Request] = []  # by the latest step, in order, if that could be continued
        self._steady: SteadyDecoding | None = None  # since then
        self._under_way: deque[SteadyDecoding] = deque()

    def note(self, claims: Sequence[Claim], chunks: Sequence[ScheduledChunk], num_running: int) -> None:
        """Remember a batch of plainly decoding requests if all that run computed one token and chose one."""
        has_all = 0 < len(claims) == num_running
        # Longer chunks come last.
        if has_all and claims[-1].num_tokens == 1 and all(chunk.rows for chunk in chunks):
            self._decoded = [claim.request for claim in claims]

    def schedule(self, running: Sequence[Request]) -> Schedule | None:
        """Let the requests of the latest step go on, with the blocks they need; None where they cannot."""
        if self._steady is None and self._decoded:
            self._steady = SteadyDecoding(self._decoded, running, self._kv_cache_manager)
        new_blocks = None if self._steady is None else self._steady.take_blocks()
        return None if new_blocks is None else Schedule(continued=self._steady, new_blocks=new_blocks)

    def leave(self) -> None:
        """Let nobody go on so: the next step is decided request by request."""
        self.settle()
        self._steady, self._decoded = None, []

    def settle(self) -> None:
        """Bring the counters of the requests up to date."""
        if self._steady is not None:
            self._steady.settle()

    def dispatch(self, schedule: Schedule, queue: FairQueue) -> Continuation:
        """Write down what is to be launched, and count it."""
        steady = schedule.continued
        assert steady is not None
        steady.num_launched += 1
        self._under_way.append(steady)
        if queue.is_shared:
            steady.charge(queue)
        return Continuation(len(steady.requests), schedule.new_blocks)

    def take_in(self, output: SamplerOutput) -> StepTokens | Batch:
        """Take in the result of the oldest continuation under way.

        Where that has to be done request by request, returns the batch that it stood for and changes nothing.
        """
        steady = self._under_way.popleft()
        if steady is self._steady:
            if steady.take_in(output):
                return StepTokens(steady.requests, output.token_ids)
            self.leave()
        return steady.as_batch()

    def forget(self) -> None:
        """Expect no result of what is under way."""
        self.leave()
        self._under_way.clear()
