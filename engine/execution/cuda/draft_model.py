"""CudaDraftModel: drafts on the device, each token fed back there; a chain of them is one graph."""

import time
from collections.abc import Sequence

import torch

from engine.core.executor import DraftJob, DraftOutput, DraftPass
from engine.execution.cuda.graphs import Graphs
from engine.execution.cuda.packing import PackedStep, Span, decode_step
from engine.execution.cuda.runner import CudaRunner
from engine.execution.cuda.special_rows import choose_in_torch, is_adjusted, is_in_torch
from engine.execution.growing_draft import GrowingDraft
from engine.interface.speculation import MAX_DRAFT_TOKENS
from engine.kernels.cuda.step_buffers import StepShape
from engine.sampling.sampler import Sampler


class CudaDraftModel:
    """Drafts as engine/execution/draft_model.py makes them: a pass over what is unread, then decode steps."""

    def __init__(
        self, runner: CudaRunner, sampler: Sampler, *, max_graphs: int, is_captured: bool = True
    ) -> None:
        self.runner, self.max_positions = runner, runner.decoder.max_positions
        self._sampler = sampler
        rows = runner.buffers.max_rows
        self._tokens = torch.zeros(MAX_DRAFT_TOKENS, rows, dtype=torch.int32, device=runner.device.device)
        self._received = runner.device.host_buffer(MAX_DRAFT_TOKENS * rows).view(MAX_DRAFT_TOKENS, rows)
        self._chains = Graphs(runner.device, self._run_chain, limit=max_graphs, is_enabled=is_captured)

    @torch.inference_mode()
    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens for each job, which end early where one would end the answer."""
        try:
            return self._draft_all(jobs)
        except Exception:
            self.runner.clear()  # what was to be sent may not have been
            raise

    def _draft_all(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        growing, passes = [GrowingDraft(job) for job in jobs], list[DraftPass]()
        active = growing
        while active:
            drafting = [draft for draft in active if draft.span.num_logits]
            is_plain = all(draft.can_be_chained for draft in drafting)
            num_steps = min((draft.num_missing for draft in drafting), default=1) if is_plain else 1
            started = time.perf_counter()
            tokens = self._draft(active, drafting, num_steps)
            num_tokens = sum(len(draft.span.token_ids) for draft in active)
            seconds = time.perf_counter() - started
            passes.append(DraftPass(num_tokens, len(drafting), num_steps, seconds))
            for draft, mine in zip(drafting, tokens, strict=True):
                draft.append_chain(mine)
            active = [draft for draft in drafting if not draft.is_complete]
            for draft in active:
                draft.feed_last()
        return DraftOutput(tuple([tuple(draft.cursor.draft_token_ids) for draft in growing]), tuple(passes))

    def _draft(
        self, active: Sequence[GrowingDraft], drafting: Sequence[GrowingDraft], num_steps: int
    ) -> list[list[int]]:
        """Read the spans of all, and return so many tokens for each that drafts."""
        runner = self.runner
        step = runner.pack([_span(draft) for draft in active])
        runner.run_model(step.shape)
        rows = [draft.cursor.row for draft in drafting]
        runner.adjust([(n, row) for n, row in enumerate(rows) if is_adjusted(row)], step.shape)
        runner.choose(step.shape)
        numbers = [number for number, row in enumerate(rows) if is_in_torch(row)]
        special = choose_in_torch(runner.logits(len(rows)), rows, numbers, self._sampler)
        count = len(rows)
        runner.copy_tokens(count, self._tokens[0])
        if num_steps > 1:
            self._chain(step, active, num_steps)
        for index in step.indices:
            runner.table.forget_last_token(index)  # the target may choose another
        tokens = self._receive(num_steps, count)
        for number, (token_id, _) in special.items():
            tokens[number] = [token_id]
        return tokens

    def _chain(self, step: PackedStep, active: Sequence[GrowingDraft], num_steps: int) -> None:
        """Let the requests that draft go on by themselves."""
        indices = [index for index, draft in zip(step.indices, active, strict=True) if draft.span.num_logits]
        decode = decode_step(indices, self.runner.table.null_request, self.runner.rules)
        self.runner.send(decode, self.runner.table.take_updates())
        self._chains.run((decode.shape, num_steps))

    def _run_chain(self, key: tuple[StepShape, int]) -> None:
        shape, num_steps = key
        for number in range(1, num_steps):
            self.runner.launch_step(shape)
            self.runner.copy_tokens(shape.num_rows, self._tokens[number])

    def _receive(self, num_steps: int, count: int) -> list[list[int]]:
        """Wait for the tokens of each row."""
        received = self._received[:num_steps]
        self.runner.device.receive(self._tokens[:num_steps], received)
        self.runner.device.record().synchronize()
        tokens: list[list[int]] = received[:, :count].T.tolist()
        return tokens


def _span(draft: GrowingDraft) -> Span:
    span = draft.span
    rows = (draft.cursor.row,) if span.num_logits else ()
    return Span(draft.cursor.request_id, span.first_position, span.token_ids, tuple(span.block_ids), rows)
