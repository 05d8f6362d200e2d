"""Speculator: what the engine knows of speculation: propose before a step, learn after it.

It gives running requests draft tokens and nothing else. Whatever it does, answers stay the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.core.executor import DraftJob, DraftPass, Executor
from engine.core.request import Request
from engine.core.rows import RowCursor
from engine.core.schedule import Claim
from engine.core.speculation_counters import SpeculationCounters
from engine.core.step_output import StepOutput
from engine.interface.batch import Batch, Continuation
from engine.interface.speculation import (
    MAX_DRAFT_TOKENS,
    DraftSource,
    SpeculationMode,
    SpeculationOutput,
    SpeculationParams,
)
from engine.speculative.acceptance import AcceptanceTable, RequestAcceptance
from engine.speculative.backoff import LookupBackoff, LookupOverhead, ModelBackoff
from engine.speculative.controller import Candidate, Controller, StepLoad
from engine.speculative.draft_cache import DraftCache
from engine.speculative.drafter import Draft, Drafter
from engine.speculative.step_costs import StepCosts

_CATCH_UP_STEPS = 64  # reading a prompt with the draft model should pay off within so many steps
_LOOKUP_MODES = (SpeculationMode.AUTO, SpeculationMode.NGRAM)
_MODEL_MODES = (SpeculationMode.AUTO, SpeculationMode.DRAFT)


@dataclass(slots=True)
class _State:
    """What is kept of a request while it runs. Counts and seconds are the speculator's at that moment."""

    acceptance: RequestAcceptance = field(default_factory=RequestAcceptance)
    candidate: Candidate | None = None  # of the present step
    draft: Draft | None = None  # proposed for it
    backoff: LookupBackoff = field(default_factory=LookupBackoff)
    last_step: int = 0  # up to which the acceptance has faded
    start_seconds: float = 0.0  # at its first token
    start_plain_seconds: float = 0.0
    saved_seconds: float = 0.0  # plain steps that accepted drafts have spared it


@dataclass(slots=True)
class _Plan:
    """What could be proposed for one request."""

    request: Request
    state: _State
    draft: Draft  # a placeholder if the draft model is to make it
    candidate: Candidate


class Speculator:
    """Sources of drafts, and the controller that decides how much of them to verify.

    `lookups` are asked for every request, the longest match wins; the draft model only where the controller
    finds it worth its time. `num_draft_tokens` bounds what the controller chooses.
    """

    def __init__(
        self,
        *,
        lookups: Sequence[Drafter] = (),
        draft_cache: DraftCache | None = None,
        max_draft_positions: int = 0,
        default_mode: SpeculationMode = SpeculationMode.AUTO,
        num_draft_tokens: int = 8,
        max_num_batched_tokens: int = 512,
        target_costs: StepCosts | None = None,
        draft_costs: StepCosts | None = None,
    ) -> None:
        self.max_draft_positions = max_draft_positions
        self.default_mode = default_mode
        self.num_draft_tokens = num_draft_tokens
        self.target_costs = target_costs or StepCosts()
        self.draft_costs = draft_costs or StepCosts()
        self.counters = SpeculationCounters()
        self.acceptance = AcceptanceTable()
        self.controller = Controller(self.target_costs, self.draft_costs)
        self.draft_cache = draft_cache or DraftCache(block_size=1)
        self._lookups = lookups
        self._max_num_batched_tokens = max_num_batched_tokens
        self._states: dict[int, _State] = {}
        self._expected_tokens = self._passes_seconds = 0.0
        self._num_model_drafts = 0
        self._drafted_with_model = False  # in the last step
        self._model_backoff = ModelBackoff()
        self._overhead = LookupOverhead()
        self._num_looked = 0  # requests in the present step that any source was asked for
        self._num_steps = 0
        self._seconds = 0.0  # of all steps
        self._plain_seconds = 0.0  # of all steps, had they had no drafts

    def resolve(self, params: SpeculationParams) -> SpeculationParams:
        """Return what a request asks for with the default mode filled in."""
        if params.mode is not None:
            return params
        return SpeculationParams(mode=self.default_mode, k=params.k)

    def propose(self, running: Sequence[Request]) -> None:
        """Give drafts to requests that are one token behind, as far as they promise to pay."""
        self._expected_tokens = self._passes_seconds = 0.0
        self._num_model_drafts = 0
        self._num_looked = 0
        self._model_backoff.begin_step(len(running))
        wanted = [request for request in running if request.speculation.mode is not SpeculationMode.OFF]
        ready = [request for request in wanted if _is_ready(request) and self._is_awake(request)]
        if not ready:
            return
        self._num_looked = len(ready)
        load = _load(running, self._max_num_batched_tokens)
        if not self.controller.could_pay(load, len(ready), self.num_draft_tokens):
            ready = [request for request in ready if _has_fixed_length(request)]
        plans = [plan for request in ready if (plan := self._plan(request, load)) is not None]
        lengths = self.controller.choose([plan.candidate for plan in plans], load)
        self._rest(plans, lengths)
        for plan, length in zip(plans, lengths, strict=True):
            plan.state.draft, plan.state.candidate = None, plan.candidate
            if plan.candidate.needs_model:
                plan.request.num_model_drafts = length
            else:
                self._take(plan.request, plan.state, plan.draft.cut(length))

    def make_drafts(self, claims: Sequence[Claim], executor: Executor) -> None:
        """Have the draft model make the drafts that have their slots, as far as it may read in a step."""
        wanted = [claim for claim in claims if claim.num_model_drafts]
        if not wanted:
            return
        budget, jobs = self._max_num_batched_tokens, list[DraftJob]()
        for claim in wanted:
            jobs.append(self._draft_job(claim, budget))
            budget -= len(jobs[-1].token_ids)
        self._expect_passes(wanted)
        output = executor.draft([job for job in jobs if job.token_ids])
        for one in output.passes:
            self._observe_pass(one)
        drafts = iter(output.token_ids)
        for claim, job in zip(wanted, jobs, strict=True):
            claim.num_model_drafts = 0
            if job.token_ids:
                token_ids, request = next(drafts), claim.request
                claim.draft_token_ids = token_ids
                num_read = len(job.token_ids) + max(0, len(token_ids) - 1)
                self.draft_cache.set_computed(request, job.first_position + num_read)
                self._take(request, self._state(request), Draft(token_ids, DraftSource.DRAFT_MODEL))

    def _draft_job(self, claim: Claim, budget: int) -> DraftJob:
        """Have the model read what it has not, as far as the budget goes, and draft if that is all."""
        request = claim.request
        first = min(self.draft_cache.num_computed_tokens(request), request.num_tokens - 1)
        token_ids = tuple(request.token_ids[first : first + max(0, budget)])
        length = claim.num_model_drafts if first + len(token_ids) == request.num_tokens else 0
        return DraftJob(token_ids, first, request.block_ids, length, RowCursor(request))

    def _take(self, request: Request, state: _State, draft: Draft) -> None:
        """Keep a draft that may be verified in this step."""
        assert state.candidate is not None
        state.draft = draft if draft.token_ids else None
        request.draft_token_ids = draft.token_ids
        self._expected_tokens += sum(state.candidate.probabilities[: len(draft.token_ids)])

    def record(
        self,
        batch: Batch | Continuation,
        outputs: Sequence[StepOutput],
        *,
        drafting: float,
        target: float,
        between: float = 0.0,
    ) -> None:
        """Learn from a step and fill in the outputs' `speculation`.

        `drafting` and `target` are the seconds that proposing and all the rest took, `between` those since
        the step before, 0 if there was nothing to do.
        """
        num_drafts = batch.num_drafted
        self._observe_costs(batch, num_drafts, drafting, target)
        plain = target
        if num_drafts:
            plain = self.target_costs.seconds(batch.num_tokens - batch.num_draft_tokens)
        self.controller.record_step(target, between)
        self._num_steps += 1
        self._seconds += drafting + target
        self._plain_seconds += plain
        for output in outputs:
            request = output.request
            is_over = request.finish_reason is not None
            if output.is_first or is_over or output.num_draft_tokens:  # else there is nothing to learn of it
                self._record_request(output, plain, is_first=output.is_first)
                self.draft_cache.settle(request)
                if is_over:
                    self.forget(request)
        if num_drafts:
            num_new = sum([len(output.token_ids) for output in outputs])
            expected = len(outputs) + self._expected_tokens
            self.controller.record(expected_tokens=expected, num_tokens=num_new, num_decodes=len(outputs))

    def _observe_costs(
        self, batch: Batch | Continuation, num_drafts: int, drafting: float, target: float
    ) -> None:
        """Learn what this step took; a lone try of the draft model runs cold and says nothing of a second."""
        if self._num_looked and not num_drafts and not self._num_model_drafts:
            self._overhead.record(
                drafting, target, num_looked=self._num_looked, num_requests=batch.num_requests
            )
        is_lone_try = self._num_model_drafts > 0 and not self._drafted_with_model
        self._drafted_with_model = self._num_model_drafts > 0
        if is_lone_try:
            return
        if batch.num_tokens:
            self.target_costs.observe(batch.num_tokens, target, num_drafts)
        if self._passes_seconds:
            self.controller.record_drafting(self._passes_seconds, self._num_model_drafts, drafting)

    def forget(self, request: Request) -> None:
        """Learn from a request that ended, in whatever way, and drop what was kept for it."""
        self._states.pop(request.request_id, None)
        for drafter in self._lookups:
            drafter.finish(request)

    def _is_awake(self, request: Request) -> bool:
        """Tell whether any source is to be asked for the request in this step."""
        if request.speculation.mode in _LOOKUP_MODES:
            self._state(request).backoff.begin_step()
            if not self._lookups_rest(request):
                return True
        return _has_fixed_length(request) or self._may_use_model(request)

    def _lookups_rest(self, request: Request) -> bool:
        # What a grammar forces is worth a look at any time.
        return self._state(request).backoff.is_on and request.grammar_state is None

    def _may_use_model(self, request: Request) -> bool:
        if request.num_tokens >= self.max_draft_positions or request.speculation.mode not in _MODEL_MODES:
            return False
        return _has_fixed_length(request) or not self._model_backoff.is_on

    def _plan(self, request: Request, load: StepLoad) -> _Plan | None:
        state, is_fixed = self._state(request), _has_fixed_length(request)
        may_use_model = self._may_use_model(request)
        looks_up = request.speculation.mode in _LOOKUP_MODES and (is_fixed or not self._lookups_rest(request))
        limit = request.speculation.k or self.num_draft_tokens
        limit = min(limit, request.max_total_tokens - request.num_tokens - 1)
        if limit < 1:
            return None
        state.acceptance.fade(self._num_steps - state.last_step)
        state.last_step = self._num_steps
        draft = self._look_up(request, limit) if looks_up else None
        if draft is None and looks_up:
            state.backoff.refuse(most_rest=self._overhead.most_rest)
        best = None if draft is None else self._lookup_plan(request, state, draft, is_fixed=is_fixed)
        if may_use_model and not _is_forced(draft):
            other = self._model_plan(request, state, limit, is_fixed=is_fixed)
            rate = self.controller.rate
            if best is None or rate(other.candidate, load) > rate(best.candidate, load):
                best = other
        return best

    def _state(self, request: Request) -> _State:
        state = self._states.get(request.request_id)
        if state is None:
            state = self._states[request.request_id] = _State(last_step=self._num_steps)
        return state

    def _rest(self, plans: Sequence[_Plan], lengths: Sequence[int]) -> None:
        """Look nothing up where it has not paid lately."""
        choices = [(plan.candidate, length) for plan, length in zip(plans, lengths, strict=True)]
        self._model_backoff.record([n for c, n in choices if c.needs_model and not c.is_fixed])
        for plan, (candidate, length) in zip(plans, choices, strict=True):
            if length:
                plan.state.backoff.reset()
            elif not candidate.needs_model:
                plan.state.backoff.refuse(most_rest=self._overhead.most_rest)

    def _look_up(self, request: Request, limit: int) -> Draft | None:
        """Return the draft of the longest match; what the grammar forces goes before any."""
        state = request.grammar_state
        if state is not None and (forced := state.forced_tokens(limit)):
            return Draft(tuple(forced), DraftSource.GRAMMAR)
        best: Draft | None = None
        for drafter in self._lookups:
            [draft] = drafter.propose((request,), (limit,))
            if draft.token_ids and (best is None or draft.match_length > best.match_length):
                best = draft
        if best is not None and state is not None:
            best = best.cut(_num_allowed(request, best.token_ids))
        return best if best is not None and best.token_ids else None

    def _lookup_plan(self, request: Request, state: _State, draft: Draft, *, is_fixed: bool) -> _Plan:
        probabilities = self.acceptance.probabilities(
            draft, state.acceptance, len(draft.token_ids), with_hopeless=is_fixed
        )
        return _Plan(request, state, draft, Candidate(probabilities, is_fixed=is_fixed))

    def _model_plan(self, request: Request, state: _State, limit: int, *, is_fixed: bool) -> _Plan:
        limit = min(limit, self.max_draft_positions - request.num_tokens)
        draft = Draft((), DraftSource.DRAFT_MODEL)
        candidate = Candidate(
            self.acceptance.probabilities(draft, state.acceptance, limit, with_hopeless=is_fixed),
            is_fixed=is_fixed,
            needs_model=True,
            num_catch_up_tokens=request.num_tokens - self.draft_cache.num_computed_tokens(request),
            num_remaining_steps=min(_CATCH_UP_STEPS, request.max_total_tokens - request.num_tokens),
        )
        return _Plan(request, state, draft, candidate)

    def _expect_passes(self, claims: Sequence[Claim]) -> None:
        """Note what drafting should take, if there is no prompt to read first."""
        self._num_model_drafts = len(claims)
        states = [self._state(claim.request) for claim in claims]
        candidates = [state.candidate for state in states if state.candidate is not None]
        if all(candidate.num_catch_up_tokens <= MAX_DRAFT_TOKENS for candidate in candidates):
            lengths = [claim.num_model_drafts for claim in claims]
            self._passes_seconds = self.controller.passes_seconds(candidates, lengths)

    def _observe_pass(self, one: DraftPass) -> None:
        """Take in what the draft model took; of a chain, what a pass after the first took."""
        costs = self.draft_costs
        if one.num_steps == 1:
            costs.observe(one.num_tokens, one.seconds)
            return
        later = costs.seconds(one.num_requests)
        expected = costs.seconds(one.num_tokens) + (one.num_steps - 1) * later
        costs.observe(one.num_requests, later * one.seconds / expected)

    def _record_request(self, output: StepOutput, plain: float, *, is_first: bool) -> None:
        request = output.request
        if request.speculation.mode is SpeculationMode.OFF:
            return
        state = self._state(request)
        draft, state.draft = state.draft, None
        num_drafted, num_accepted = output.num_draft_tokens, output.num_accepted_tokens
        if draft is not None and num_drafted:
            self.acceptance.record(draft.cut(num_drafted), state.acceptance, num_accepted)
            self.counters.count(num_drafted, num_accepted)
            state.last_step = self._num_steps
        else:
            draft = None
        if is_first:  # what came before was the prompt's time
            state.start_seconds, state.start_plain_seconds = self._seconds, self._plain_seconds
        else:
            state.saved_seconds += plain * (len(output.token_ids) - 1)
        if draft is not None or request.finish_reason is not None:
            plain_seconds = self._plain_seconds - state.start_plain_seconds + state.saved_seconds
            output.speculation = SpeculationOutput(
                source=None if draft is None else draft.source,
                num_draft_tokens=num_drafted,
                num_accepted_tokens=num_accepted,
                seconds=self._seconds - state.start_seconds,
                plain_seconds=plain_seconds,
            )


def _is_ready(request: Request) -> bool:
    return (
        not (request.draft_token_ids or request.num_model_drafts)
        and request.num_computed_tokens == request.num_tokens - 1
        and request.num_output_tokens > 0
    )


def _has_fixed_length(request: Request) -> bool:
    """Tell whether the request names a source and a length: then it gets just that."""
    return request.speculation.k is not None and request.speculation.mode is not SpeculationMode.AUTO


def _is_forced(draft: Draft | None) -> bool:
    return draft is not None and draft.source is DraftSource.GRAMMAR


def _load(running: Sequence[Request], max_num_batched_tokens: int) -> StepLoad:
    pending = [request.num_tokens - request.num_computed_tokens for request in running]
    num_decodes = sum(num_tokens == 1 for num_tokens in pending)
    return StepLoad(min(max_num_batched_tokens, sum(pending)), max(1, num_decodes))


def _num_allowed(request: Request, token_ids: Sequence[int]) -> int:
    """Return how many tokens the grammar allows one after the other, none after the answer is complete."""
    assert request.grammar_state is not None
    state = request.grammar_state.copy()
    for place, token_id in enumerate(token_ids):
        if state.is_complete or not state.allows(token_id):
            return place
        state.accept(token_id)
    return len(token_ids)
