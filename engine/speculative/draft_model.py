"""The draft model: a smaller model that shares block ids with the target and guesses one token at a time."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.kv_cache.kv_storage import KVMemory
from engine.model.registry import Model
from engine.model_input import ModelInput, TokenSpan, lay_out
from engine.request import Request
from engine.sampled_row import DraftRow, SampledRow
from engine.sampling.row_processors import needs_processing
from engine.sampling.sampler import Sampler
from engine.speculation import DraftSource
from engine.speculative.drafter import Draft
from engine.speculative.step_costs import StepCosts


class DraftChain(Protocol):
    """A faster way to draft several tokens, for rows that no logits processor changes."""

    def __call__(
        self, model_input: ModelInput, rows: Sequence[SampledRow], num_steps: int
    ) -> list[list[int]]:
        """Return num_steps tokens for each row; the rows' spans stand first in the input."""


class DraftModel:
    """Drafts for all speculating requests as one batch.

    Its KV storage has the target's blocks: position p of a request lies in the same block and slot in both,
    so one allocation and one prefix hit serve both. A counter of its own says how far a request is computed
    here; the rest is caught up first, at most `max_catch_up_tokens` in one step.

    It samples as the target does, with the same noise, parameters and grammar: then the two agree whenever
    their distributions nearly do (arXiv 2408.07978), and exactly as often as greedy ones at temperature 0.
    """

    def __init__(
        self,
        model: Model,
        kv_storage: KVMemory,
        kv_cache_manager: KVCacheManager,
        sampler: Sampler,
        *,
        max_positions: int,
        max_catch_up_tokens: int,
        device: torch.device,
        chain: DraftChain | None = None,
    ) -> None:
        self.chain = chain
        self.model = model
        self.kv_storage = kv_storage
        self.kv_cache_manager = kv_cache_manager
        self.sampler = sampler
        self.max_positions = max_positions
        self.max_catch_up_tokens = max_catch_up_tokens
        self.device = device
        self.costs = StepCosts()

    @torch.inference_mode()
    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """Guess up to limits[i] tokens of requests[i]; none where blocks or positions are short."""
        growing = [
            _GrowingDraft(request, self._room(request, limit))
            for request, limit in zip(requests, limits, strict=True)
        ]
        budget = self.max_catch_up_tokens
        for draft in growing:
            budget -= draft.catch_up(budget)
        active = [draft for draft in growing if draft.span.token_ids]
        active = self._run_chain(active)
        while active:
            drafting = [draft for draft in active if draft.span.num_logits]
            token_ids = self.run([draft.span for draft in active], [draft.row for draft in drafting])
            for draft, token_id in zip(drafting, token_ids, strict=True):
                draft.append(token_id)
            active = [draft for draft in drafting if not draft.is_complete]
            for draft in active:
                draft.feed_last()
        return [Draft(draft.row.draft_token_ids, DraftSource.DRAFT_MODEL) for draft in growing]

    def _run_chain(self, active: "list[_GrowingDraft]") -> "list[_GrowingDraft]":
        """Draft in one go what all drafts have in common, where that is possible; return what goes on."""
        drafting = [draft for draft in active if draft.span.num_logits]
        num_steps = min((draft.length for draft in drafting), default=0)
        if self.chain is None or num_steps < 1 or any(_is_processed(draft.row) for draft in drafting):
            return active
        started = time.perf_counter()
        spans = [draft.span for draft in drafting]
        spans += [draft.span for draft in active if not draft.span.num_logits]  # only catching up
        model_input = lay_out(spans, block_size=self.kv_cache_manager.block_size, device=self.device)
        chains = self.chain(model_input, [draft.row for draft in drafting], num_steps)
        for draft, token_ids in zip(drafting, chains, strict=True):
            draft.append_chain(token_ids)
        self._observe_chain(len(model_input.token_id_list), len(drafting), num_steps, started)
        active = [draft for draft in drafting if not draft.is_complete]
        for draft in active:
            draft.feed_last()
        return active

    def _observe_chain(self, num_first: int, num_drafting: int, num_steps: int, started: float) -> None:
        """Take in what a pass over num_first tokens and then num_steps - 1 small ones took."""
        seconds = time.perf_counter() - started
        later = self.costs.seconds(num_drafting)
        expected = self.costs.seconds(num_first) + (num_steps - 1) * later
        self.costs.observe(num_drafting, later * seconds / expected)

    def run(self, spans: Sequence[TokenSpan], rows: Sequence[DraftRow]) -> list[int]:
        """Run the model over the spans and choose a token for each row."""
        started = time.perf_counter()
        model_input = lay_out(spans, block_size=self.kv_cache_manager.block_size, device=self.device)
        hidden = self.model(model_input, self.kv_storage)
        token_ids: list[int] = []
        if rows:
            logits: Tensor = self.model.compute_logits(model_input.take_logits_rows(hidden))
            token_ids = self.sampler.choose(logits, rows)
        self.costs.observe(len(model_input.token_id_list), time.perf_counter() - started)
        return token_ids

    def finish(self, request: Request) -> None:
        """Keep nothing: all it knows of a request is in the blocks."""

    def _room(self, request: Request, limit: int) -> int:
        """Reserve the slots of a draft; return its length."""
        limit = min(limit, self.max_positions - request.num_tokens)
        if limit < 1 or not self.kv_cache_manager.allocate_slots(request, 1 + limit):
            return 0
        return limit


def _is_processed(row: DraftRow) -> bool:
    """Tell whether a row needs more than temperature, top-k, top-p, min-p and noise."""
    return needs_processing(row) or (not row.params.is_greedy and row.params.typical_p < 1.0)


class _GrowingDraft:
    """One request's draft while it is made, and the tokens that the next pass reads for it."""

    def __init__(self, request: Request, length: int) -> None:
        self.row = DraftRow(request, (), request.grammar_state)
        self.length = length
        self.span = TokenSpan((), 0, request.block_ids, 0)

    def catch_up(self, budget: int) -> int:
        """Read the tokens that the draft model has not computed, as many as the budget allows."""
        if self.length < 1 or budget < 1:
            return 0
        request = self.row.request
        first = min(request.num_draft_computed_tokens, request.num_tokens - 1)
        token_ids = request.token_ids[first : first + budget]
        request.num_draft_computed_tokens = first + len(token_ids)
        reaches_end = request.num_draft_computed_tokens == request.num_tokens
        self.span = TokenSpan(token_ids, first, request.block_ids, int(reaches_end))
        return len(token_ids)

    def append(self, token_id: int) -> None:
        """Add a token."""
        self.row = self.row.followed_by(token_id)

    def append_chain(self, token_ids: Sequence[int]) -> None:
        """Add tokens that were made in one go, each read to guess the next, up to one that ends the draft."""
        stop_token_ids = self.row.stop_token_ids
        count = next((n for n, t in enumerate(token_ids, 1) if t in stop_token_ids), len(token_ids))
        self.row = DraftRow(self.row.request, (*self.row.draft_token_ids, *token_ids[:count]), None)
        self.row.request.num_draft_computed_tokens += count - 1

    def feed_last(self) -> None:
        """Read the last token of the draft, to guess the one after it."""
        request = self.row.request
        self.span = TokenSpan(self.row.draft_token_ids[-1:], self.row.num_tokens - 1, request.block_ids, 1)
        request.num_draft_computed_tokens += 1

    @property
    def is_complete(self) -> bool:
        """True at its length, and after a token that would end the answer."""
        row, state = self.row, self.row.grammar_state
        is_end = row.draft_token_ids[-1] in row.stop_token_ids or (state is not None and state.is_complete)
        return is_end or len(row.draft_token_ids) >= self.length
