"""The draft model: a smaller model that shares block ids with the target and guesses one token at a time."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.kv_cache.kv_storage import KVMemory
from engine.model.registry import Model
from engine.model_input import TokenSpan, lay_out
from engine.request import Request
from engine.sampled_row import DraftRow
from engine.sampling.sampler import Sampler
from engine.speculation import DraftSource
from engine.speculative.drafter import Draft
from engine.speculative.step_costs import StepCosts


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
    ) -> None:
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
        lengths = [self._room(request, limit) for request, limit in zip(requests, limits, strict=True)]
        rows = {
            number: DraftRow(request, (), request.grammar_state)
            for number, request in enumerate(requests)
            if lengths[number] > 0
        }
        budget = self.max_catch_up_tokens
        drafting: dict[int, TokenSpan] = {}
        behind: list[TokenSpan] = []
        for number in rows:
            span = _span(requests[number], budget)
            budget -= len(span.token_ids)
            if span.num_logits:
                drafting[number] = span
            elif span.token_ids:
                behind.append(span)
            requests[number].num_draft_computed_tokens = span.first_position + len(span.token_ids)
        drafts: dict[int, DraftRow] = {}
        while drafting or behind:
            token_ids = self.run([*drafting.values(), *behind], [rows[number] for number in drafting])
            for number, token_id in zip(list(drafting), token_ids, strict=True):
                rows[number] = drafts[number] = rows[number].followed_by(token_id)
                drafting[number] = self._next_span(rows[number])
                if not self._goes_on(rows[number], lengths[number]):
                    del drafting[number]
            for number in drafting:
                requests[number].num_draft_computed_tokens += 1
            behind = []
        return [
            Draft(drafts[number].draft_token_ids if number in drafts else (), DraftSource.DRAFT_MODEL)
            for number in range(len(requests))
        ]

    def run(self, spans: Sequence[TokenSpan], rows: Sequence[DraftRow]) -> list[int]:
        """Run the model over the spans and choose a token for each row."""
        started = time.perf_counter()
        model_input = lay_out(spans, block_size=self.kv_cache_manager.block_size, device=self.device)
        hidden = self.model(model_input, self.kv_storage)
        token_ids: list[int] = []
        if rows:
            logits: Tensor = self.model.compute_logits(hidden[model_input.logits_rows])
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

    def _goes_on(self, row: DraftRow, length: int) -> bool:
        """Tell whether to draft another token: not after one that would end the answer."""
        state, token_id = row.grammar_state, row.draft_token_ids[-1]
        is_end = token_id in row.stop_token_ids or (state is not None and state.is_complete)
        return len(row.draft_token_ids) < length and not is_end

    def _next_span(self, row: DraftRow) -> TokenSpan:
        return TokenSpan(row.draft_token_ids[-1:], row.num_tokens - 1, row.request.block_ids, 1)


def _span(request: Request, budget: int) -> TokenSpan:
    """Return the tokens that the draft model has not computed, as many as the budget allows."""
    first = min(request.num_draft_computed_tokens, request.num_tokens - 1)
    token_ids = request.token_ids[first : first + max(0, budget)]
    reaches_end = first + len(token_ids) == request.num_tokens
    return TokenSpan(token_ids, first, request.block_ids, 1 if reaches_end and token_ids else 0)
