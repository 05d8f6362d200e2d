"""CudaExecutor: batches on a CUDA device; the host sends what is new and reads the tokens late."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.core.continuation import expand
from engine.core.executor import DraftJob, DraftOutput, PendingStep
from engine.execution.cuda.checked_kernels import KernelError
from engine.execution.cuda.draft_model import CudaDraftModel
from engine.execution.cuda.packing import PackedStep, Span, decode_step
from engine.execution.cuda.results import ResultSlot, StepResults
from engine.execution.cuda.runner import CudaRunner
from engine.execution.cuda.special_rows import choose_in_torch, is_adjusted, is_in_torch, is_special
from engine.execution.prompts import pool_prompts, score_prompts
from engine.interface.batch import Batch, Continuation, SamplerOutput, ScheduledChunk
from engine.interface.outputs import TokenLogprobs
from engine.interface.sampled_row import SampledRow
from engine.kv_cache.persistence import BlockStorage
from engine.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CudaStep:
    """A step under way: what is known of it already, and where the rest will be."""

    results: StepResults
    num_tokens: int
    rows: Sequence[SampledRow | None]  # None: no logprobs are wanted
    chosen: dict[int, tuple[int, TokenLogprobs | None]]  # of the special rows
    read: SamplerOutput  # what was read of prompts, with the faults found there

    def result(self) -> SamplerOutput:
        """Wait for the step and return what it chose."""
        token_ids = self.results.tokens(len(self.rows))
        for number, (token_id, _) in self.chosen.items():
            token_ids[number] = token_id
        logprobs = tuple([self._logprobs(n, token_ids[n], row) for n, row in enumerate(self.rows)])
        faults = self.results.faults(self.num_tokens) | self.read.faults
        return self.read._replace(token_ids=tuple(token_ids), logprobs=logprobs, faults=faults)

    def _logprobs(self, number: int, token_id: int, row: SampledRow | None) -> TokenLogprobs | None:
        if number in self.chosen:
            return self.chosen[number][1]
        if row is None or row.params.logprobs is None:
            return None
        return self.results.logprobs(number, token_id, row.params.logprobs)


@dataclass(frozen=True, slots=True)
class CudaContinuation:
    """A step under way of which nothing but tokens is wanted."""

    results: StepResults
    num_rows: int

    def result(self) -> SamplerOutput:
        """Wait for the step and return what it chose."""
        token_ids = tuple(self.results.tokens(self.num_rows))
        return SamplerOutput(token_ids, (), self.results.faults(self.num_rows))


class CudaExecutor:
    """Batches through a runner: their spans packed and sent, the graph launched, the results fetched.

    A batch's numbers are sent only as far as the device does not know them. A step with rows that are chosen
    in torch is waited for when it is launched, as is one that reads prompts.
    """

    continues = True

    def __init__(
        self,
        runner: CudaRunner,
        sampler: Sampler,
        *,
        steps_ahead: int,
        draft_model: CudaDraftModel | None = None,
    ) -> None:
        self.runner, self.steps_ahead, self.draft_model = runner, steps_ahead, draft_model
        self.max_draft_positions = 0 if draft_model is None else draft_model.max_positions
        self._sampler = sampler
        buffers = runner.buffers
        self._slots = [
            ResultSlot(runner.device, max_results=len(buffers.results), max_rows=buffers.max_rows)
            for _ in range(steps_ahead + 1)
        ]
        self._next_slot = self._num_launched = 0
        self._last: PackedStep | None = None
        self._last_indices = np.zeros(0, dtype=np.int64)
        self._last_special: Batch | None = None  # the last batch, where it had special rows

    def prepare(self) -> None:
        """Compile and capture what serving will launch."""
        logger.info("kernels are compiled, or found in Triton's cache, and decode steps captured")
        self.runner.prepare()
        if self.draft_model is not None:
            self.draft_model.runner.prepare()

    @property
    def block_storage(self) -> BlockStorage:
        """The memory of the target's blocks."""
        return self.runner.kv_storage

    @torch.inference_mode()
    def launch(self, batch: Batch | Continuation) -> PendingStep:
        """Make the batch's copies, run its tokens, score and pool prompts, choose a token for each row."""
        try:
            if not isinstance(batch, Continuation):
                return self._launch(batch)
            if self._last_special is not None:
                return self._launch(expand(self._last_special, batch))
            return self._continue(batch)
        except Exception as error:
            self.runner.clear()
            self._last = self._last_special = None
            if isinstance(error, KernelError):
                logger.error("step %d: %s; requests %s", self._num_launched, error, _request_ids(batch))
            raise
        finally:
            self._num_launched += 1

    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens with the draft model, whose storage has the target's block ids."""
        assert self.draft_model is not None
        return self.draft_model.draft(jobs)

    def _launch(self, batch: Batch) -> CudaStep:
        for copy in batch.block_copies:
            self.runner.kv_storage.copy_block(copy.source, copy.target)
        step = self.runner.pack([_span(chunk) for chunk in batch.chunks])
        self._remember(step)
        self.runner.run_model(step.shape)
        read = self._read_prompts(batch) if batch.reads_hidden_states else SamplerOutput((), ())
        rows = batch.rows
        chosen = self._choose(step, batch, rows)
        results = self._fetch(step, any(_wants_logprobs(row) for row in rows))
        return CudaStep(results, batch.num_tokens, rows, chosen, read)

    def _continue(self, continuation: Continuation) -> CudaContinuation:
        """Launch the rows of the last step that go on, one token further."""
        step, table = self._last, self.runner.table
        assert step is not None, "a continuation follows a step"
        is_known = step.is_decode and not continuation.ended
        if not is_known:
            ended = frozenset(continuation.ended)
            going_on = [index for row, index in enumerate(step.indices) if row not in ended]
            step = decode_step(going_on, table.null_request, self.runner.rules)
            self._remember(step)
        for row, block_id in continuation.new_blocks:
            table.append_block(step.indices[row], block_id)
        table.advance_by_one(self._last_indices)
        self.runner.send(None if is_known else step, table.take_updates())
        self.runner.run_model(step.shape)
        self.runner.choose(step.shape)
        return CudaContinuation(self._fetch(step, False), continuation.num_rows)

    def _remember(self, step: PackedStep) -> None:
        self._last, self._last_indices = step, np.array(step.indices)

    def _read_prompts(self, batch: Batch) -> SamplerOutput:
        """Score and pool prompts; this waits for the device."""
        hidden = self.runner.hidden.hidden
        reader = _HiddenReader(self.runner)
        prompt_logprobs, faults = score_prompts(reader, self._sampler.vocab_size, batch, hidden)
        pooled, broken = pool_prompts(reader, batch, hidden)
        return SamplerOutput((), (), frozenset(faults | broken), prompt_logprobs, pooled)

    def _choose(
        self, step: PackedStep, batch: Batch, rows: Sequence[SampledRow]
    ) -> dict[int, tuple[int, TokenLogprobs | None]]:
        """Launch the choice of all tokens; return those of the rows that were chosen in torch."""
        is_any_special = any(is_special(row) for row in rows)
        self._last_special = batch if is_any_special else None
        if is_any_special:
            self.runner.adjust([(n, row) for n, row in enumerate(rows) if is_adjusted(row)], step.shape)
        self.runner.choose(step.shape)
        numbers = [number for number, row in enumerate(rows) if is_any_special and is_in_torch(row)]
        if not numbers:
            return {}
        chosen = choose_in_torch(self.runner.logits(len(rows)), rows, numbers, self._sampler)
        first = 0
        for index, chunk in zip(step.indices, batch.chunks, strict=True):
            if len(chunk.rows) == 1 and first in chosen:  # the device took its own choice for it
                self.runner.table.forget_last_token(index)
                self.runner.table.set_last_token(index, chosen[first][0], chunk.rows[0].position)
            first += len(chunk.rows)
        return chosen

    def _fetch(self, step: PackedStep, with_logprobs: bool) -> StepResults:
        """Let the step's results be copied to the next slot, whose last ones have been read."""
        slot, shape = self._slots[self._next_slot], step.shape
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        count = shape.num_rows + shape.num_tokens
        self.runner.device.receive(self.runner.buffers.results[:count], slot.numbers[:count])
        if with_logprobs:
            self.runner.fetch_logprobs(shape.num_rows, slot.logprobs)
        return StepResults(slot, self.runner.device.record(), shape)


@dataclass(frozen=True)
class _HiddenReader:
    """The end of a runner's model, for some rows of the last step."""

    runner: CudaRunner

    def normalize(self, hidden: Tensor) -> Tensor:
        return self.runner.normalize(hidden)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.runner.compute_logits(hidden)


def _request_ids(batch: Batch | Continuation) -> str:
    if isinstance(batch, Continuation):
        return f"of the step before, {batch.num_rows}"
    return ", ".join(str(chunk.request_id) for chunk in batch.chunks)


def _span(chunk: ScheduledChunk) -> Span:
    return Span(chunk.request_id, chunk.first_position, chunk.token_ids, chunk.block_ids, chunk.rows)


def _wants_logprobs(row: SampledRow) -> bool:
    return row.params.logprobs is not None and not is_in_torch(row)
