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
from engine.speculative.step_costs import StepCosts

_MOST_REFUSALS = 6
_CATCH_UP_STEPS = 64  # reading a prompt with the draft model should pay off within so many steps
_LOOKUP_MODES = (SpeculationMode.AUTO, SpeculationMode.NGRAM)
_MODEL_MODES = (SpeculationMode.AUTO, SpeculationMode.DRAFT)


@dataclass(slots=True)
class _State:
    """What is kept of a request while it runs."""

    acceptance: RequestAcceptance = field(default_factory=RequestAcceptance)
    draft: Draft | None = None  # proposed for the present step
    seconds: float = 0.0
    plain_seconds: float = 0.0


@dataclass(slots=True)
class _Plan:
    """What could be proposed for one request."""

    request: Request
    state: _State
    draft: Draft  # a placeholder if the draft model is to make it
    candidate: Candidate


class _ModelPause:
    """Spares the thought of the draft model where it has not paid: 1, 3, 7, ... at most 63 steps of rest.

    Nothing is learned of it meanwhile; only a smaller batch could change the answer at once.
    """

    def __init__(self) -> None:
        self._num_refusals = 0
        self._num_steps_left = 0
        self._num_decodes = 0

    @property
    def is_on(self) -> bool:
        """True while no draft of the model is considered, but for requests that name its length."""
        return self._num_steps_left > 0

    def begin_step(self, load: StepLoad) -> None:
        """Count a step."""
        self._num_steps_left = max(0, self._num_steps_left - 1)
        if load.num_decodes < self._num_decodes:
            self._num_steps_left = self._num_refusals = 0
        self._num_decodes = load.num_decodes

    def record(self, plans: Sequence[_Plan], lengths: Sequence[int]) -> None:
        """Take in what the controller made of the model's drafts."""
        chosen = [
            length
            for plan, length in zip(plans, lengths, strict=True)
            if plan.candidate.needs_model and not plan.candidate.is_fixed
        ]
        if any(chosen):
            self._num_refusals = 0
        elif chosen:
            self._num_refusals = min(_MOST_REFUSALS, self._num_refusals + 1)
            self._num_steps_left = 2**self._num_refusals - 1


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
        self._expected_tokens = 0.0
        self._pause = _ModelPause()

    def resolve(self, params: SpeculationParams) -> SpeculationParams:
        """Return what a request asks for with the default mode filled in."""
        if params.mode is not None:
            return params
        return SpeculationParams(mode=self.default_mode, k=params.k)

    def propose(self, running: Sequence[Request]) -> None:
        """Give drafts to requests that are one token behind, as far as they promise to pay."""
        self._expected_tokens = 0.0
        ready = [request for request in running if _is_ready(request)]
        if not ready:
            return
        load = _load(running, self._max_num_batched_tokens)
        self.controller.begin_step(load)
        self._pause.begin_step(load)
        if not self.controller.could_pay(load, len(ready), self.num_draft_tokens):
            ready = [request for request in ready if _has_fixed_length(request)]
        plans = [plan for request in ready if (plan := self._plan(request, load)) is not None]
        lengths = self.controller.choose([plan.candidate for plan in plans], load)
        self._pause.record(plans, lengths)
        self._draft_with_model(plans, lengths)
        for plan, length in zip(plans, lengths, strict=True):
            draft = plan.draft.cut(length)
            plan.state.draft = draft if draft.token_ids else None
            plan.request.draft_token_ids = draft.token_ids
            self._expected_tokens += sum(plan.candidate.survival[: len(draft.token_ids)])

    def record(self, batch: Batch, outputs: Sequence[StepOutput], *, drafting: float, target: float) -> None:
        """Learn from a step and fill in the outputs' `speculation`.

        `drafting` and `target` are the seconds that proposing and all the rest took.
        """
        num_drafts = sum([bool(chunk.draft_token_ids) for chunk in batch.chunks])
        if batch.num_tokens:
            self.target_costs.observe(batch.num_tokens, target, num_drafts)
        plain = target
        if num_drafts:
            plain = self.target_costs.seconds(batch.num_tokens - batch.num_draft_tokens)
        num_new = 0
        for output in outputs:
            num_new += len(output.token_ids)
            if output.request.speculation.mode is not SpeculationMode.OFF:
                self._record_request(output, drafting + target, plain)
            if output.request.finish_reason is not None:
                self.forget(output.request)
        if num_drafts:
            expected = len(outputs) + self._expected_tokens
            self.controller.record(expected_tokens=expected, num_tokens=num_new, num_decodes=len(outputs))

    def forget(self, request: Request) -> None:
        """Learn from a request that ended, in whatever way, and drop what was kept for it."""
        self._states.pop(request.request_id, None)
        for drafter in self._lookups:
            drafter.finish(request)

    def _plan(self, request: Request, load: StepLoad) -> _Plan | None:
        state = self._states.get(request.request_id)
        if state is None:
            state = self._states[request.request_id] = _State()
        mode, is_fixed = request.speculation.mode, _has_fixed_length(request)
        limit = request.speculation.k or self.num_draft_tokens
        limit = min(limit, request.max_total_tokens - request.num_tokens - 1)
        if limit < 1:
            return None
        draft = self._look_up(request, limit) if mode in _LOOKUP_MODES else None
        best = None if draft is None else self._lookup_plan(request, state, draft, is_fixed=is_fixed)
        may_use_model = mode in _MODEL_MODES and (is_fixed or not self._pause.is_on) and not _is_forced(draft)
        if self.draft_model is not None and may_use_model:
            other = self._model_plan(request, state, limit, is_fixed=is_fixed)
            rate = self.controller.rate
            if best is None or rate(other.candidate, load) > rate(best.candidate, load):
                best = other
        return best

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
            drafts = self.draft_model.propose([p.request for p, _ in wanted], [n for _, n in wanted])
            for (plan, _), draft in zip(wanted, drafts, strict=True):
                plan.draft = draft

    def _record_request(self, output: StepOutput, seconds: float, plain_seconds: float) -> None:
        state = self._states.get(output.request.request_id)
        if state is None:
            state = self._states[output.request.request_id] = _State()
        draft, state.draft = state.draft, None
        num_drafted, num_accepted = output.num_draft_tokens, output.num_accepted_tokens
        if draft is not None and num_drafted:
            self.acceptance.record(draft.cut(num_drafted), state.acceptance, num_accepted)
            self.counters.count(num_drafted, num_accepted)
        else:
            draft = None
            self.acceptance.forgive(state.acceptance)
        if output.request.num_output_tokens > len(output.token_ids):  # else it has just begun to decode
            state.seconds += seconds
            state.plain_seconds += plain_seconds * len(output.token_ids)
        if draft is not None or output.request.finish_reason is not None:
            output.speculation = SpeculationOutput(
                source=None if draft is None else draft.source,
                num_draft_tokens=num_drafted,
                num_accepted_tokens=num_accepted,
                seconds=state.seconds,
                plain_seconds=state.plain_seconds,
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
