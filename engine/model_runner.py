"""ModelRunner: owns model, KV storage and sampler; runs one step's tensors through them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from engine.batch import Batch
from engine.kv_cache.kv_storage import KVMemory
from engine.model.registry import Model
from engine.model_input import ModelInput, build_model_input
from engine.sampled_row import SampledRow
from engine.sampling.logprobs import token_logprobs
from engine.sampling.sampler import Sampler, SamplerOutput, broken_rows, is_simple

_SCORED_ROWS = 64  # prompt tokens scored at once: bounds the logits held to this many rows


class TokenStep(Protocol):
    """A faster way through a whole step, for simple rows (is_simple)."""

    def __call__(
        self, model_input: ModelInput, rows: Sequence[SampledRow]
    ) -> tuple[list[int], frozenset[int]]:
        """Write keys and values of all tokens; return a token for each of `rows`, and the faults."""


class ModelRunner:
    """The only place where a step touches the device."""

    def __init__(
        self,
        model: Model,
        kv_storage: KVMemory,
        sampler: Sampler,
        *,
        block_size: int,
        device: torch.device,
        token_step: TokenStep | None = None,
    ) -> None:
        self.model = model
        self.kv_storage = kv_storage
        self.sampler = sampler
        self.block_size = block_size
        self.device = device
        self.token_step = token_step

    def execute(self, batch: Batch) -> SamplerOutput:
        """Run a batch, score prompts that want it, and choose a token for each sampled row."""
        for copy in batch.block_copies:
            self.kv_storage.copy_block(copy.source, copy.target)
        model_input = build_model_input(batch, block_size=self.block_size, device=self.device)
        rows = batch.sampled_rows
        if self.token_step is None or batch.num_scored or not all(map(is_simple, rows)):
            return self._execute_in_torch(batch, model_input, rows)
        token_ids, faults = self.token_step(model_input, rows)
        return SamplerOutput(tuple(token_ids), (None,) * len(rows), faults)

    @torch.inference_mode()
    def _execute_in_torch(
        self, batch: Batch, model_input: ModelInput, rows: Sequence[SampledRow]
    ) -> SamplerOutput:
        """Do it with hidden states and logits as tensors, which every parameter can work on."""
        hidden = self.model(model_input, self.kv_storage)
        faults = self._score_prompts(batch, hidden)
        faults.update(model_input.faults.nonzero().flatten().tolist())
        output = SamplerOutput((), ())
        if rows:
            output = self.sampler(self.model.compute_logits(model_input.take_logits_rows(hidden)), rows)
            faults.update(model_input.logits_rows[row] for row in output.faults)
        return replace(output, faults=frozenset(faults))

    def _score_prompts(self, batch: Batch, hidden: Tensor) -> set[int]:
        """Add the logprobs of prompt tokens to their requests; return the tokens with broken logits."""
        start, faults = 0, set[int]()
        for chunk in batch.chunks:
            request, first = chunk.request, chunk.request.num_computed_tokens
            num_known = len(request.prompt_logprobs)  # more than `first` when it was preempted
            for offset in range(max(0, num_known - first), chunk.num_scored, _SCORED_ROWS):
                count = min(_SCORED_ROWS, chunk.num_scored - offset)
                rows = hidden[start + offset : start + offset + count]
                targets = request.token_ids[first + offset + 1 : first + offset + 1 + count]
                logits = self.model.compute_logits(rows)[:, : self.sampler.vocab_size]
                num_top = [request.params.prompt_logprobs or 0] * count
                request.prompt_logprobs.extend(token_logprobs(logits, targets, num_top))
                faults.update(start + offset + row for row in broken_rows(logits))
            start += chunk.num_tokens
        return faults
