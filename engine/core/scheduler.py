"""Scheduler: which tokens of which requests run in the next step, and what its result means."""

import time
from collections import deque
from collections.abc import Sequence

from engine.core.accepted_tokens import append_chosen, take_prompt_results
from engine.core.chunks import chunk_of, faults_of
from engine.core.draft_slots import drop_drafts, schedule_drafts
from engine.core.fair_queue import FairQueue
from engine.core.request import Request, RequestStatus
from engine.core.schedule import Claim, Schedule, layout_key
from engine.core.steady_path import SteadyPath
from engine.core.step_output import StepOutput, StepTokens
from engine.interface.batch import Batch, BlockCopy, Continuation, SamplerOutput, ScheduledChunk
from engine.interface.outputs import FinishReason
from engine.kv_cache.kv_cache_manager import KVCacheManager

_RESTORED_IN_A_STEP = 64  # blocks


class Scheduler:
    """Tenants in turn, first come, first served within one, under a token budget per step.

    Every running request is either catching up on its prompt (a chunk) or one token behind (a decode);
    both are the same arithmetic. Drafts come after every running request has its own tokens: they take
    what is left of the budget and of the free blocks. When blocks run out, all drafts give theirs back;
    if that is not enough, the youngest running request gives all of its blocks back and waits at the front
    of the queue; its tokens are recomputed later, mostly from the cache.
    """

    def __init__(
        self, kv_cache_manager: KVCacheManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self.kv_cache_manager = kv_cache_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self._block_size = kv_cache_manager.block_size
        self._requests: dict[int, Request] = {}  # that wait, run or have ended with steps under way
        self._num_steps_in_flight = 0
        self.impatient: dict[int, Request] = {}  # that must start by some time and have not yet
        self._suspects: deque[Request] = deque()  # of a step that failed: they run one at a time
        self._num_needing_tokens = self._num_not_plain = 0  # running requests
        self._steady_path = SteadyPath(kv_cache_manager)
        self.num_preemptions = 0
        self.prefix_cache_queries = self.prefix_cache_hits = 0

    def add(self, request: Request) -> None:
        """Put a new request at the end of the queue."""
        self._requests[request.request_id] = request
        self.waiting.add(request)
        self._steady_path.expects_start |= len(self.running) < self.max_num_seqs
        if request.starts_before is not None:
            self.impatient[request.request_id] = request

    @property
    def requests(self) -> list[Request]:
        """Requests that wait, run or have ended while steps under way still use their blocks."""
        self._steady_path.settle()
        return list(self._requests.values())

    @property
    def can_run_ahead(self) -> bool:
        """Tell whether a step may be scheduled before the tokens of those under way are known."""
        return not self._suspects and not self._num_needing_tokens

    @property
    def schedulable(self) -> list[Request]:
        """The running requests that may take part in the next step: all, unless one is tried alone."""
        if not self._suspects:
            return list(self.running)
        return [request for request in self.running if self._may_run(request)]

    @property
    def suspect(self) -> Request | None:
        """The request that runs alone, for a step with it and others failed."""
        return self._suspects[0] if self._suspects else None

    def suspect_all(self) -> None:
        """Forget the steps under way, which failed; what ran starts anew, one request at a time.

        Nothing of those steps was taken in, so their tokens are computed again, the same ones.
        """
        self._steady_path.forget()
        self._num_steps_in_flight = 0
        for request in self.requests:
            request.num_steps_in_flight = 0
            if request.status is RequestStatus.FINISHED:
                self._release(request)
        failed = list(self.running)
        for request in reversed(failed):
            self._preempt(request)
        for request in self.requests:
            if request not in self.waiting:  # taken out of the queue by a schedule() that raised
                self.kv_cache_manager.free(request)
                self.waiting.put_back(request)
                failed.append(request)
        self._suspects = deque(failed)

    def fail_suspect(self, request: Request) -> None:
        """End the suspect, with which alone a step failed."""
        self._num_steps_in_flight = request.num_steps_in_flight = 0
        request.is_step_error = True
        self.finish(request, FinishReason.ERROR)

    def _clear_suspect(self, request: Request) -> None:
        """Let the next suspect be tried, with room for all of its blocks: this one got a token."""
        self._suspects.popleft()
        if self._suspects and request.status is RequestStatus.RUNNING:
            self._preempt(request)

    def _may_run(self, request: Request) -> bool:
        return not self._suspects or request is self._suspects[0]

    def schedule(self, *, may_continue: bool = False) -> Schedule:
        """Choose the next step's tokens and give them their slots; the step may be a continuation.

        Nothing is chosen where steps under way must be over first: only then may a request be preempted.
        """
        if self.waiting.is_shared and not self._suspects and not self._share_places():
            return Schedule()
        self._restore_prefix()
        if may_continue and (schedule := self._schedule_continuation()) is not None:
            return schedule
        self._steady_path.leave()
        schedule = Schedule()
        budget, is_short = self._schedule_running(schedule.claims, self.max_num_batched_tokens)
        if is_short and self._num_steps_in_flight:
            return Schedule()
        if not is_short:
            budget = schedule_drafts(schedule.claims, budget, self.kv_cache_manager)
            schedule.block_copies = self._schedule_waiting(schedule.claims, budget)
        schedule.claims.sort(key=layout_key)
        return schedule

    def _schedule_continuation(self) -> Schedule | None:
        """Let everybody go on if they can; by claims, as in any other step, if others start beside them."""
        schedule = self._steady_path.schedule(self.running)
        if schedule is None:
            return None
        num_running = len(self.running)
        if self.waiting and num_running < self.max_num_seqs:
            budget = self.max_num_batched_tokens - len(schedule.request_ids)
            schedule.block_copies = self._schedule_waiting(schedule.claims, budget)
        if schedule.claims:
            schedule.claims[:0] = [Claim(one, 1) for one in self.running[:num_running] if one.wants_token]
            schedule.claims.sort(key=layout_key)
            schedule.continued = None
        return schedule

    def expire(self, now: float) -> list[StepOutput]:
        """End the requests that have not started in time."""
        expired = [one for one in self.impatient.values() if (one.starts_before or now) <= now]
        for request in expired:
            self.finish(request, FinishReason.TIMEOUT)
        return [StepOutput(request, is_first=True) for request in expired]

    def _share_places(self) -> bool:
        """Preempt requests of tenants that run more than others whose turn it is to start one.

        Returns False where steps under way must be over first.
        """
        while (request := self.waiting.peek()) is not None and self._must_wait_for_place(request):
            tenant = self.waiting.tenant_with_more(request)
            if tenant is None:
                break
            if self._num_steps_in_flight:
                return False
            self._preempt(next(one for one in reversed(self.running) if one.tenant == tenant))
        return True

    def _restore_prefix(self) -> None:
        """Read what files hold of the next request's prefix, a bounded part in one step."""
        if self.kv_cache_manager.persistence is None or self._suspects:
            return
        request = self.waiting.peek()
        has_place = len(self.running) < self.max_num_seqs
        if request is not None and has_place and self.kv_cache_manager.is_restorable(request):
            self.kv_cache_manager.restore_prefix(request, _RESTORED_IN_A_STEP)

    def _must_wait_for_place(self, request: Request) -> bool:
        cached = self.kv_cache_manager.find_cached_prefix(request)
        if self.kv_cache_manager.is_prefix_in_flight(request, len(cached.blocks)):
            return False  # a place would not help it
        is_full = len(self.running) >= self.max_num_seqs
        return is_full or not self.kv_cache_manager.can_start(request, cached)

    def dispatch(self, schedule: Schedule) -> Batch | Continuation:
        """Turn a schedule into what is to be launched, and count its tokens as computed."""
        self._num_steps_in_flight += 1
        if schedule.continued is not None:
            return self._steady_path.dispatch(schedule, self.waiting)
        chunks = []
        is_shared = self.waiting.is_shared
        for claim in schedule.claims:
            request, chunk = claim.request, chunk_of(claim)
            if chunk.rows:
                request.num_in_flight += 1
            request.num_computed_tokens += claim.num_tokens
            request.num_steps_in_flight += 1
            if request.draft_token_ids or request.num_model_drafts:
                request.forget_drafts()
            if is_shared:
                self.waiting.charge(request, claim.num_tokens + len(chunk.rows))
            chunks.append(chunk)
        if not self._num_not_plain:
            self._steady_path.note(schedule.claims, chunks, self.running)
        return Batch(tuple(chunks), tuple(schedule.block_copies))

    def commit(self, batch: Batch | Continuation, output: SamplerOutput) -> Sequence[StepOutput]:
        """Take in the result of the oldest step under way, a token per sampled row, in order.

        Returns what it brought the requests that advanced or ended: the sampled ones, then those that only
        read their prompt. Requests that ended meanwhile give their blocks back.
        """
        self._num_steps_in_flight -= 1
        if isinstance(batch, Continuation):
            taken_in = self._steady_path.take_in(output)
            if isinstance(taken_in, StepTokens):
                return taken_in
            batch = taken_in
        outputs, read = list[StepOutput](), list[StepOutput]()
        scores, sums = iter(output.prompt_logprobs), iter(output.pooled)
        first_row = first_token = 0
        for chunk in batch.chunks:
            request = self._requests[chunk.request_id]
            request.num_steps_in_flight -= 1
            num_tokens, num_rows = len(chunk.token_ids), len(chunk.rows)
            faults = output.faults and faults_of(chunk, first_token, output.faults)
            is_faulty = bool(faults) and min(faults) < num_tokens - chunk.num_drafts
            if chunk.scored is not None or chunk.pooled_from is not None:
                take_prompt_results(request, chunk, scores, sums, counts=not is_faulty)
            if request.status is RequestStatus.FINISHED:
                self._release(request)
            elif num_tokens == num_rows == 1 and request.decodes_plainly and not (faults or self._suspects):
                outputs.append(self._advance_plainly(request, chunk, output.token_ids[first_row]))
            elif is_faulty:  # nothing of the step is cached
                self.finish(request, FinishReason.ERROR)
                outputs.append(StepOutput(request, is_first=request.num_output_tokens == 0))
            elif num_rows:
                step, reason = append_chosen(request, chunk, output, first_row, faults)
                self._advance(request, chunk, len(step.token_ids), reason)
                outputs.append(step)
            else:
                self._settle(request, chunk.first_position + num_tokens)
                if chunk.ends_request:
                    self.finish(request, FinishReason.LENGTH)
                    read.append(StepOutput(request, is_first=True))
            first_row += num_rows
            first_token += num_tokens
        return outputs + read

    def _advance(
        self, request: Request, chunk: ScheduledChunk, num_new: int, reason: FinishReason | None
    ) -> None:
        """Count the tokens that were just appended; end the request where it ends with them."""
        request.num_in_flight -= 1
        request.num_computed_tokens += num_new - 1  # the accepted drafts
        self._settle(request, chunk.first_position + len(chunk.token_ids) - chunk.num_drafts + num_new - 1)
        if reason is not None:
            self.finish(request, reason)
        if self._suspects and request is self._suspects[0]:
            self._clear_suspect(request)

    def _advance_plainly(self, request: Request, chunk: ScheduledChunk, token_id: int) -> StepOutput:
        """Do, in half the time, what append_chosen() and _advance() do: for one token and no more."""
        request.num_in_flight -= 1
        request.token_ids.append(token_id)
        num_tokens = chunk.first_position + 1
        self._settle(request, num_tokens)
        if token_id in request.stop_token_ids or len(request.token_ids) >= request.max_total_tokens:
            is_stop = token_id in request.stop_token_ids
            self.finish(request, FinishReason.STOP if is_stop else FinishReason.LENGTH)
        return StepOutput(request, (token_id,), num_tokens == request.num_prompt_tokens)

    def _settle(self, request: Request, num_tokens: int) -> None:
        """Count tokens whose KV is there and final."""
        request.num_committed_tokens = num_tokens
        is_at_edge = num_tokens // self._block_size != request.num_cached_full_blocks
        if is_at_edge or num_tokens == request.num_prompt_tokens:
            self.kv_cache_manager.cache_computed_blocks(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state it is; a finished one stays as it is."""
        if request.status is RequestStatus.FINISHED:
            return
        if request.status is RequestStatus.RUNNING:
            self._steady_path.part(is_last=len(self.running) == 1)
            self._stop(request)
        else:
            self.waiting.remove(request)
        self.impatient.pop(request.request_id, None)
        if request in self._suspects:
            self._suspects.remove(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.forget_drafts()
        self._release(request)

    def _release(self, request: Request) -> None:
        """Free the blocks of a request that ended, once no step under way uses them."""
        if request.num_steps_in_flight == 0:
            self.kv_cache_manager.free(request)
            del self._requests[request.request_id]

    def _schedule_running(self, claims: list[Claim], budget: int) -> tuple[int, bool]:
        """Return what is left of the budget, and whether blocks ran out."""
        is_short = False
        for request in self.schedulable:
            if budget == 0:
                break
            if request.status is not RequestStatus.RUNNING:
                continue  # preempted just now
            num_in_flight, num_computed = request.num_in_flight, request.num_computed_tokens
            end = len(request.token_ids) + num_in_flight
            if end == num_computed or (num_in_flight and end >= request.max_total_tokens):
                continue  # its prompt is being read to the end, or its last token chosen
            num_tokens = min(end - num_computed, budget)
            while not self.kv_cache_manager.allocate_slots(request, num_tokens):
                if drop_drafts(self.running, self.kv_cache_manager):
                    continue
                is_short = True
                if self._num_steps_in_flight:
                    return budget, is_short
                victim = self.running[-1]
                self._preempt(victim)
                if victim is request:
                    break
            if request.status is RequestStatus.RUNNING:
                claims.append(Claim(request, num_tokens))
                budget -= num_tokens
        return budget, is_short

    def _schedule_waiting(self, claims: list[Claim], budget: int) -> list[BlockCopy]:
        """Start waiting requests as long as budget and blocks allow; return what must be copied for them."""
        copies: list[BlockCopy] = []
        postponed: list[Request] = []
        while budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting.pop()
            if request is None:
                break
            if not self._may_run(request):
                postponed.append(request)
                continue
            if not self._suspects and self.kv_cache_manager.is_restorable(request):
                postponed.append(request)  # until it is the next
                continue
            cached = self.kv_cache_manager.find_cached_prefix(request)
            if self.kv_cache_manager.is_prefix_in_flight(request, len(cached.blocks)):
                # Somebody computes this very prefix: wait for its blocks, let the others pass.
                postponed.append(request)
                continue
            if not self.kv_cache_manager.can_start(request, cached):
                postponed.append(request)
                break
            if request.explains_cache and request.cache_explanation is None:
                request.cache_explanation = self.kv_cache_manager.explain(request, cached)
            if copy := self.kv_cache_manager.start(request, cached):
                copies.append(copy)
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            self.kv_cache_manager.allocate_slots(request, num_tokens)
            self._record_start(request)
            claims.append(Claim(request, num_tokens))
            budget -= num_tokens
        for request in postponed:
            self.waiting.put_back(request)
        return copies

    def _record_start(self, request: Request) -> None:
        self._steady_path.leave()
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        self.waiting.started(request)
        self._num_needing_tokens += request.needs_its_tokens
        self._num_not_plain += not request.decodes_plainly
        self.impatient.pop(request.request_id, None)
        if request.first_run_time is not None:
            return  # resumed: what it finds now it computed itself
        request.first_run_time = time.monotonic()
        request.num_cached_tokens = request.num_computed_tokens
        if self.kv_cache_manager.enable_prefix_caching:
            self.prefix_cache_queries += request.num_prompt_tokens
            self.prefix_cache_hits += request.num_cached_tokens

    def _preempt(self, request: Request) -> None:
        self._steady_path.leave()
        self._stop(request)
        self.kv_cache_manager.free(request)
        request.forget_drafts()
        request.status = RequestStatus.WAITING
        self.waiting.put_back(request)
        self.num_preemptions += 1

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.waiting.stopped(request)
        self._num_needing_tokens -= request.needs_its_tokens
        self._num_not_plain -= not request.decodes_plainly
