"""The draft model: a smaller model that shares block ids with the target and guesses one token at a time."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.core.executor import DraftJob, DraftOutput, DraftPass
from engine.execution.growing_draft import GrowingDraft
from engine.interface.sampled_row import SampledRow
from engine.model.model_input import ModelInput, lay_out
from engine.sampling.sampler import Sampler


class LoadedModel(Protocol):
    """A model bound to its keys and values."""

    def __call__(self, model_input: ModelInput) -> Tensor:
        """Return hidden states [num_tokens, ...] and write the step's keys and values."""

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the model's last norm to rows of hidden states: [num_rows, hidden_size]."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits [num_rows, vocab_size]."""


class DraftChain(Protocol):
    """A faster way to draft several tokens, for rows that no logits processor changes."""

    def __call__(
        self, model_input: ModelInput, rows: Sequence[SampledRow], num_steps: int
    ) -> list[list[int]]:
        """Return num_steps tokens for each row; the rows' spans stand first in the input."""


class DraftModel:
    """Drafts for all speculating requests as one batch.

    Its KV storage has the target's blocks: position p of a request lies in the same block and slot in both,
    so one allocation and one prefix hit serve both.

    It samples as the target does, with the same noise, parameters and grammar: then the two agree whenever
    their distributions nearly do (arXiv 2408.07978), and exactly as often as greedy ones at temperature 0.
    """

    def __init__(
        self,
        model: LoadedModel,
        sampler: Sampler,
        *,
        max_positions: int,
        block_size: int,
        device: torch.device,
        chain: DraftChain | None = None,
    ) -> None:
        self.model = model
        self.max_positions = max_positions
        self._chain = chain
        self._sampler = sampler
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens for each job, which end early where one would end the answer."""
        growing, passes = [GrowingDraft(job) for job in jobs], list[DraftPass]()
        active = self._run_chain(growing, passes)
        while active:
            drafting = [draft for draft in active if draft.span.num_logits]
            token_ids = self._run(active, drafting, passes)
            for draft, token_id in zip(drafting, token_ids, strict=True):
                draft.cursor.append(token_id)
            active = [draft for draft in drafting if not draft.is_complete]
            for draft in active:
                draft.feed_last()
        return DraftOutput(tuple([tuple(draft.cursor.draft_token_ids) for draft in growing]), tuple(passes))

    def _run_chain(self, active: list[GrowingDraft], passes: list[DraftPass]) -> list[GrowingDraft]:
        """Draft in one go what all drafts have in common, where that is possible; return what goes on."""
        drafting = [draft for draft in active if draft.span.num_logits]
        num_steps = min((draft.length for draft in drafting), default=0)
        if self._chain is None or num_steps < 1 or not all(draft.can_be_chained for draft in drafting):
            return active
        started = time.perf_counter()
        others = [draft for draft in active if not draft.span.num_logits]  # only reading
        model_input = self._lay_out([*drafting, *others])
        rows = [draft.cursor.row for draft in drafting]
        for draft, token_ids in zip(drafting, self._chain(model_input, rows, num_steps), strict=True):
            draft.append_chain(token_ids)
        seconds = time.perf_counter() - started
        passes.append(DraftPass(len(model_input.token_id_list), len(drafting), num_steps, seconds))
        active = [draft for draft in drafting if not draft.is_complete]
        for draft in active:
            draft.feed_last()
        return active

    def _run(
        self, active: list[GrowingDraft], drafting: list[GrowingDraft], passes: list[DraftPass]
    ) -> list[int]:
        """Run the model over the spans of all and choose a token for each that drafts."""
        started = time.perf_counter()
        model_input = self._lay_out(active)
        hidden = self.model(model_input)
        token_ids: list[int] = []
        if drafting:
            logits = self.model.compute_logits(model_input.take_logits_rows(hidden))
            token_ids = self._sampler.choose(logits, [draft.cursor.row for draft in drafting])
        seconds = time.perf_counter() - started
        passes.append(DraftPass(len(model_input.token_id_list), len(drafting), 1, seconds))
        return token_ids

    def _lay_out(self, drafts: Sequence[GrowingDraft]) -> ModelInput:
        spans = [draft.span for draft in drafts]
        return lay_out(spans, block_size=self._block_size, device=self._device)
