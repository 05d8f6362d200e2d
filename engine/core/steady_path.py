"""SteadyPath: from which step on the next ones are continuations, and when that is over."""

from collections import deque
from collections.abc import Sequence
from itertools import compress

from engine.core.fair_queue import FairQueue
from engine.core.request import Request, RequestStatus
from engine.core.schedule import Claim, Schedule
from engine.core.steady_decoding import SteadyDecoding
from engine.core.step_output import StepTokens
from engine.interface.batch import Batch, Continuation, SamplerOutput, ScheduledChunk
from engine.kv_cache.kv_cache_manager import KVCacheManager


class SteadyPath:
    """The requests that decode steadily, while they do, and the continuations that are under way.

    Whoever changes which requests run, or reads their counters, calls leave(), part() or settle() first.
    """

    def __init__(self, kv_cache_manager: KVCacheManager) -> None:
        self._kv_cache_manager = kv_cache_manager
        self._launched: Sequence[Request] = []  # by the latest step, in order, if that can be continued
        self._steady: SteadyDecoding | None = None  # those of them that go on
        self._ended: tuple[int, ...] = ()  # the others
        self.expects_start = False  # of a request that came just now: entering would be for one step at most
        self._under_way: deque[SteadyDecoding] = deque()

    def note(
        self, claims: Sequence[Claim], chunks: Sequence[ScheduledChunk], running: Sequence[Request]
    ) -> None:
        """Remember a batch of plainly decoding requests if it has all that run, and each chooses a token."""
        if not claims or len(claims) < len(running) or not all(chunk.rows for chunk in chunks):
            return
        requests = [claim.request for claim in claims]
        # The order of the next step is that of this one if no chunk was longer; longer ones come last.
        if claims[-1].num_tokens == 1 or requests == sorted(running, key=_layout_key):
            self._launched = requests

    def schedule(self, running: Sequence[Request]) -> Schedule | None:
        """Let the requests of the latest step go on, with the blocks they need; None where they cannot."""
        if self._steady is not None and not self._steady.may_go_on:
            self.part()
        if self._steady is None and self._launched and not self.expects_start:
            self._enter(running)
        new_blocks = None if self._steady is None else self._steady.take_blocks()
        if new_blocks is None:
            return None
        return Schedule(continued=self._steady, new_blocks=new_blocks, ended=self._ended)

    def _enter(self, running: Sequence[Request]) -> None:
        """Begin anew with those of the latest step that want a token behind it; it had all that run."""
        goes_on = [one.status is RequestStatus.RUNNING and one.wants_token for one in self._launched]
        requests = list(compress(self._launched, goes_on))
        if requests:
            self._ended = tuple([row for row, stays in enumerate(goes_on) if not stays])
            self._steady = SteadyDecoding(requests, running, self._kv_cache_manager)

    def part(self, *, is_last: bool = False) -> None:
        """Let some request go its own way: those of the latest step that are left may go on without it."""
        self.settle()
        self._steady, self._ended = None, ()
        if is_last:  # nothing is kept of requests that are over
            self._launched = []

    def leave(self) -> None:
        """Let nobody go on so: the next step is decided request by request."""
        self.part()
        self._launched, self.expects_start = [], False

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
        self._launched, self._ended = steady.requests, ()
        if queue.is_shared:
            steady.charge(queue)
        return Continuation(len(steady.requests), schedule.new_blocks, schedule.ended)

    def take_in(self, output: SamplerOutput) -> StepTokens | Batch:
        """Take in the result of the oldest continuation under way.

        Where that has to be done request by request, returns the batch that it stood for and changes nothing.
        """
        steady = self._under_way.popleft()
        if steady is self._steady:
            if steady.take_in(output):
                return StepTokens(steady.requests, output.token_ids)
            self.part()
        return steady.as_batch()

    def forget(self) -> None:
        """Expect no result of what is under way."""
        self.leave()
        self._under_way.clear()


def _layout_key(request: Request) -> int:
    """Sort the requests of a step of single tokens as schedule.layout_key() does."""
    return -request.num_computed_tokens
