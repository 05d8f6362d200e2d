"""Speculator: what the engine knows of speculation: propose before a step, learn after it.

It gives running requests draft tokens and nothing else. Whatever it does, answers stay the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.batch import Batch, StepOutput
from engine.request import Request
from engine.speculation import (
    MAX_DRAFT_TOKENS,
    DraftSource,
    SpeculationMode,
    SpeculationOutput,
    SpeculationParams,
)
from engine.speculative.acceptance import AcceptanceTable, RequestAcceptance
from engine.speculative.controller import Candidate, Controller, StepLoad
from engine.speculative.draft_model import DraftModel
from engine.speculative.drafter import Draft, Drafter
from engine.speculative.pauses import LookupPause, ModelPause, Thought
from engine.speculative.step_costs import StepCosts

_CATCH_UP_STEPS = 64  # reading a prompt with the draft model should pay off within so many steps
_LOOKUP_MODES = (SpeculationMode.AUTO, SpeculationMode.NGRAM)
_MODEL_MODES = (SpeculationMode.AUTO, SpeculationMode.DRAFT)


@dataclass(slots=True)
class _State:
    """What is kept of a request while it runs. Counts and seconds are the speculator's at that moment."""

    acceptance: RequestAcceptance = field(default_factory=RequestAcceptance)
    draft: Draft | None = None  # proposed for the present step
    pause: LookupPause = field(default_factory=LookupPause)
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


class SpeculationCounters:
    """Totals since the start."""

    def __init__(self) -> None:
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.drafted_at = [0] * MAX_DRAFT_TOKENS  # by position in the draft
        self.accepted_at = [0] * MAX_DRAFT_TOKENS

    def count(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count one verification."""
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted_tokens
        for place in range(num_draft_tokens):
            self.drafted_at[place] += 1
            self.accepted_at[place] += place < num_accepted_tokens


class Speculator:
    """Sources of drafts, and the controller that decides how much of them to verify.

    `lookups` are asked for every request, the longest match wins; the draft model only where the controller
    finds it worth its time. `num_draft_tokens` bounds what the controller chooses.
    """

    def __init__(
        self,
        *,
        lookups: Sequence[Drafter] = (),
        draft_model: DraftModel | None = None,
        default_mode: SpeculationMode = SpeculationMode.AUTO,
        num_draft_tokens: int = 8,
        max_num_batched_tokens: int = 512,
    ) -> None:
        self.draft_model = draft_model
        self.default_mode = default_mode
        self.num_draft_tokens = num_draft_tokens
        self.target_costs = StepCosts()
        self.counters = SpeculationCounters()
        self.acceptance = AcceptanceTable()
        self.controller = Controller(
            self.target_costs, StepCosts() if draft_model is None else draft_model.costs
        )
        self._lookups = lookups
        self._max_num_batched_tokens = max_num_batched_tokens
        self._states: dict[int, _State] = {}
        self._expected_tokens = self._passes_seconds = 0.0
        self._num_model_drafts = 0
        self._drafted_with_model = False  # in the last step
        self._pause = ModelPause()
        self._thought = Thought()
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
        self._pause.begin_step(len(running))
        ready = [request for request in running if _is_ready(request) and self._is_awake(request)]
        if not ready:
            return
        self._num_looked = len(ready)
        load = _load(running, self._max_num_batched_tokens)
        if not self.controller.could_pay(load, len(ready), self.num_draft_tokens):
            ready = [request for request in ready if _has_fixed_length(request)]
        plans = [plan for request in ready if (plan := self._plan(request, load)) is not None]
        lengths = self.controller.choose([plan.candidate for plan in plans], load)
        self._rest(plans, lengths)
        self._draft_with_model(plans, lengths)
        for plan, length in zip(plans, lengths, strict=True):
            draft = plan.draft.cut(length)
            plan.state.draft = draft if draft.token_ids else None
            plan.request.draft_token_ids = draft.token_ids
            self._expected_tokens += sum(plan.candidate.survival[: len(draft.token_ids)])

    def record(
        self,
        batch: Batch,
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
        num_drafts = sum([bool(chunk.draft_token_ids) for chunk in batch.chunks])
        self._observe_costs(batch, num_drafts, drafting, target)
        plain = target
        if num_drafts:
            plain = self.target_costs.seconds(batch.num_tokens - batch.num_draft_tokens)
        self.controller.record_step(target, between)
        self._num_steps += 1
        self._seconds += drafting + target
        self._plain_seconds += plain
        for output in outputs:
            request, is_over = output.request, output.request.finish_reason is not None
            is_first = request.num_output_tokens == len(output.token_ids)
            if is_first or is_over or output.num_draft_tokens:  # else there is nothing to learn of it
                self._record_request(output, plain, is_first=is_first)
            if is_over:
                self.forget(request)
        if num_drafts:
            num_new = sum([len(output.token_ids) for output in outputs])
            expected = len(outputs) + self._expected_tokens
            self.controller.record(expected_tokens=expected, num_tokens=num_new, num_decodes=len(outputs))

    def _observe_costs(self, batch: Batch, num_drafts: int, drafting: float, target: float) -> None:
        """Learn what this step took; a lone try of the draft model runs cold and says nothing of a second."""
        if self._num_looked and not num_drafts and not self._num_model_drafts:
            self._thought.record(
                drafting, target, num_looked=self._num_looked, num_requests=len(batch.chunks)
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
            self._state(request).pause.begin_step()
            if not self._lookups_rest(request):
                return True
        return _has_fixed_length(request) or self._may_use_model(request)

    def _lookups_rest(self, request: Request) -> bool:
        # What a grammar forces is worth a look at any time.
        return self._state(request).pause.is_on and request.grammar_state is None

    def _may_use_model(self, request: Request) -> bool:
        if self.draft_model is None or request.speculation.mode not in _MODEL_MODES:
            return False
        return _has_fixed_length(request) or not self._pause.is_on

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
            state.pause.refuse(most_rest=self._thought.most_rest)
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
        """Spare the thought where it has not paid lately."""
        choices = [(plan.candidate, length) for plan, length in zip(plans, lengths, strict=True)]
        self._pause.record([n for c, n in choices if c.needs_model and not c.is_fixed])
        for plan, (candidate, length) in zip(plans, choices, strict=True):
            if length:
                plan.state.pause.reset()
            elif not candidate.needs_model:
                plan.state.pause.refuse(most_rest=self._thought.most_rest)

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
        survival = self.acceptance.survival(
            draft, state.acceptance, len(draft.token_ids), with_hopeless=is_fixed
        )
        return _Plan(request, state, draft, Candidate(survival, is_fixed=is_fixed))

    def _model_plan(self, request: Request, state: _State, limit: int, *, is_fixed: bool) -> _Plan:
        draft = Draft((), DraftSource.DRAFT_MODEL)
        candidate = Candidate(
            self.acceptance.survival(draft, state.acceptance, limit, with_hopeless=is_fixed),
            is_fixed=is_fixed,
            needs_model=True,
            num_catch_up_tokens=request.num_tokens - request.num_draft_computed_tokens,
            num_remaining_steps=min(_CATCH_UP_STEPS, request.max_total_tokens - request.num_tokens),
        )
        return _Plan(request, state, draft, candidate)

    def _draft_with_model(self, plans: Sequence[_Plan], lengths: Sequence[int]) -> None:
        wanted = [(p, n) for p, n in zip(plans, lengths, strict=True) if n and p.candidate.needs_model]
        if wanted and self.draft_model is not None:
            self._num_model_drafts = len(wanted)
            candidates = [plan.candidate for plan, _ in wanted]
            if all(c.num_catch_up_tokens <= MAX_DRAFT_TOKENS for c in candidates):  # no prompt to read first
                self._passes_seconds = self.controller.passes_seconds(candidates, [n for _, n in wanted])
            drafts = self.draft_model.propose([p.request for p, _ in wanted], [n for _, n in wanted])
            for (plan, _), draft in zip(wanted, drafts, strict=True):
                plan.draft = draft

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
        request.speculation.mode is not SpeculationMode.OFF
        and not request.draft_token_ids
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
