"""Scheduler: which tokens of which requests run in the next step, and what its result means."""

import logging
import time
from collections import deque
from dataclasses import replace

from engine.batch import Batch, ScheduledChunk, StepOutput
from engine.kv_cache.block import BlockCopy
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.outputs import FinishReason
from engine.request import Request, RequestStatus
from engine.sampling.sampler import SamplerOutput

logger = logging.getLogger(__name__)


class Scheduler:
    """First come, first served, under a token budget per step.

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
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0

    def add(self, request: Request) -> None:
        """Put a new request at the end of the queue."""
        self.waiting.append(request)

    def schedule(self) -> Batch:
        """Choose the next step's chunks and give them their slots."""
        chunks: list[ScheduledChunk] = []
        copies: list[BlockCopy] = []
        budget, preempted = self._schedule_running(chunks, self.max_num_batched_tokens)
        if not preempted:
            budget = self._schedule_drafts(chunks, budget)
            copies = self._schedule_waiting(chunks, budget)
        return Batch(tuple(sorted(chunks, key=_layout_key)), tuple(copies))

    def update(self, batch: Batch, output: SamplerOutput) -> list[StepOutput]:
        """Take in a step's result, a token per sampled row, in order.

        Returns what it brought the requests that advanced or ended: the sampled ones, then those that only
        wanted scores. A draft token stays if it is what the target chose in its place; the tokens chosen
        after the first that does not are dropped.
        """
        outputs: list[StepOutput] = []
        scored = [c.request for c in batch.chunks if c.reaches_end and not c.request.wants_token]
        first_row = first_token = 0
        for chunk in batch.chunks:
            faults = output.faults and _faults_of(chunk, first_token, output.faults)
            first_token += chunk.num_tokens
            num_rows = 1 + len(chunk.draft_token_ids) if chunk.is_sampled else 0
            if faults and min(faults) < chunk.num_tokens - len(chunk.draft_token_ids):
                outputs.append(self._fail(chunk.request))
            elif chunk.is_sampled:
                outputs.append(self._advance(chunk, output, first_row, faults))
            else:
                self._move_counter(chunk.request, chunk.num_tokens)
            first_row += num_rows
        for request in scored:
            if request.status is not RequestStatus.FINISHED:
                self.finish(request, FinishReason.LENGTH)
                outputs.append(StepOutput(request))
        return outputs

    def _fail(self, request: Request) -> StepOutput:
        """End a request whose values are not finite; nothing of the step is published."""
        self.finish(request, FinishReason.ERROR)
        return StepOutput(request)

    def _advance(
        self, chunk: ScheduledChunk, output: SamplerOutput, first_row: int, faults: frozenset[int]
    ) -> StepOutput:
        """Append the accepted drafts and the target's own token after them; end the request where it ends."""
        request, drafts = chunk.request, chunk.draft_token_ids
        num_new, reason = 0, None
        for place in range(1 + len(drafts)):
            if faults and chunk.num_tokens - len(drafts) - 1 + place in faults:
                break  # a draft without a finite value: as a token of the answer it will fail in its own step
            token_id = output.token_ids[first_row + place]
            request.append(token_id)
            num_new += 1
            reason = finish_reason_after(request, token_id)
            if reason is not None or place == len(drafts) or token_id != drafts[place]:
                break
        new_token_ids = tuple(output.token_ids[first_row : first_row + num_new])
        logprobs = output.logprobs[first_row : first_row + num_new]
        num_accepted = sum(a == b for a, b in zip(new_token_ids, drafts, strict=False))
        request.draft_token_ids = ()
        self._move_counter(request, chunk.num_tokens - len(drafts) + num_new - 1)
        if reason is not None:
            self.finish(request, reason)
        return StepOutput(
            request,
            new_token_ids,
            tuple([score for score in logprobs if score is not None]),
            num_draft_tokens=len(drafts),
            num_accepted_tokens=num_accepted,
        )

    def _move_counter(self, request: Request, num_tokens: int) -> None:
        """Count tokens whose KV is now there and final."""
        request.num_computed_tokens += num_tokens
        if request.num_draft_computed_tokens:
            self.kv_cache_manager.settle_draft_tokens(request)
        self.kv_cache_manager.publish_computed_blocks(request)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state it is; a finished one stays as it is."""
        if request.status is RequestStatus.FINISHED:
            return
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.draft_token_ids = ()
        self.kv_cache_manager.free(request)

    def _schedule_running(self, chunks: list[ScheduledChunk], budget: int) -> tuple[int, bool]:
        preempted = False
        for request in list(self.running):
            if budget == 0:
                break
            if request.status is not RequestStatus.RUNNING:
                continue
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            while not self.kv_cache_manager.allocate_slots(request, num_tokens):
                if self._drop_drafts():
                    continue
                preempted = True
                victim = self.running[-1]
                self._preempt(victim)
                if victim is request:
                    break
            if request.status is RequestStatus.RUNNING:
                chunks.append(ScheduledChunk(request, num_tokens))
                budget -= num_tokens
        return budget, preempted

    def _schedule_drafts(self, chunks: list[ScheduledChunk], budget: int) -> int:
        """Let drafts ride along as far as budget and free blocks go; return what is left of the budget."""
        for place, chunk in enumerate(chunks):
            drafts = chunk.request.draft_token_ids
            if drafts and budget > 0:
                drafts = drafts[:budget]
                num_tokens = chunk.num_tokens + len(drafts)
                if self.kv_cache_manager.allocate_slots(chunk.request, num_tokens):
                    chunks[place] = replace(chunk, num_tokens=num_tokens, draft_token_ids=drafts)
                    budget -= len(drafts)
        return budget

    def _drop_drafts(self) -> bool:
        """Forget all drafts and give their blocks back; False if there were none to give."""
        released = False
        for request in self.running:
            request.draft_token_ids = ()
            released |= self.kv_cache_manager.release_draft_slots(request)
        return released

    def _schedule_waiting(self, chunks: list[ScheduledChunk], budget: int) -> list[BlockCopy]:
        """Start waiting requests as long as budget and blocks allow; return what must be copied for them."""
        copies: list[BlockCopy] = []
        postponed: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            cached = self.kv_cache_manager.find_cached_prefix(request)
            if self.kv_cache_manager.is_prefix_in_flight(request, len(cached.blocks)):
                # Somebody computes this very prefix: wait for its blocks, let the others pass.
                postponed.append(self.waiting.popleft())
                continue
            if not self.kv_cache_manager.can_start(request, cached):
                break
            self.waiting.popleft()
            if copy := self.kv_cache_manager.start(request, cached):
                copies.append(copy)
            num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            self.kv_cache_manager.allocate_slots(request, num_tokens)
            self._record_start(request)
            chunks.append(ScheduledChunk(request, num_tokens))
            budget -= num_tokens
        self.waiting.extendleft(reversed(postponed))
        return copies

    def _record_start(self, request: Request) -> None:
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        if request.first_run_time is not None:
            return  # resumed: what it finds now it computed itself
        request.first_run_time = time.monotonic()
        request.num_cached_tokens = request.num_computed_tokens
        if self.kv_cache_manager.enable_prefix_caching:
            self.prefix_cache_queries += request.num_prompt_tokens
            self.prefix_cache_hits += request.num_cached_tokens

    def _preempt(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        self.running.remove(request)
        request.draft_token_ids = ()
        request.status = RequestStatus.WAITING
        self.waiting.appendleft(request)
        self.num_preemptions += 1


def _layout_key(chunk: ScheduledChunk) -> tuple[bool, int]:
    """Single tokens first, longest context first: their rows are then consecutive for attention."""
    return chunk.num_tokens > 1, -chunk.request.num_computed_tokens


def _faults_of(chunk: ScheduledChunk, first_token: int, faults: frozenset[int]) -> frozenset[int]:
    """Return the faults among the tokens of a chunk that begins at `first_token`, counted from there."""
    mine = range(first_token, first_token + chunk.num_tokens)
    return frozenset(token - first_token for token in faults if token in mine)


def finish_reason_after(request: Request, token_id: int) -> FinishReason | None:
    """Tell whether the request ends with the token just appended; a stop wins over the length."""
    state = request.grammar_state
    if state is not None and state.is_complete:
        if state.error is None:
            return FinishReason.STOP
        logger.warning("an answer was cut short: %s", state.error)
        return FinishReason.LENGTH
    if token_id in request.stop_token_ids and request.num_output_tokens > request.params.min_tokens:
        return FinishReason.STOP
    if not request.wants_token:
        return FinishReason.LENGTH
    return None
