"""TorchExecutor: steps in plain torch on any device; the reference of every other executor."""

from collections import ChainMap, deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.core.continuation import expand
from engine.core.executor import DraftJob, DraftOutput, FinishedStep
from engine.execution.draft_model import DraftModel, LoadedModel
from engine.execution.prompts import pool_prompts, score_prompts
from engine.interface.batch import PENDING_TOKEN, Batch, Continuation, SamplerOutput
from engine.kv_cache.persistence import BlockStorage
from engine.model.decoder import Decoder
from engine.model.input_buffers import InputBuffers
from engine.model.kv_storage import KVStorage
from engine.model.model_input import ModelInput, build_model_input
from engine.sampling.sampler import Sampler


class TorchModel(NamedTuple):
    """A model in torch, bound to its keys and values."""

    model: Decoder
    kv_storage: KVStorage

    def __call__(self, model_input: ModelInput) -> Tensor:
        """Return hidden states [num_tokens, hidden_size] and write the step's keys and values."""
        return self.model(model_input, self.kv_storage)

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the model's last norm to rows of hidden states [num_rows, hidden_size]."""
        return self.model.norm(hidden)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits [num_rows, vocab_size]."""
        return self.model.compute_logits(hidden)


class TorchExecutor:
    """Hidden states and logits as tensors, which every parameter can work on.

    Where it `continues`, it writes each continuation out as the whole batch that it stands for.
    """

    def __init__(
        self,
        model: TorchModel,
        sampler: Sampler,
        *,
        block_size: int,
        device: torch.device,
        buffers: InputBuffers | None = None,
        draft_model: DraftModel | None = None,
        steps_ahead: int = 0,
        continues: bool = False,
    ) -> None:
        self.model = model
        self.draft_model = draft_model
        self.steps_ahead = steps_ahead
        self.continues = continues
        self.max_draft_positions = 0 if draft_model is None else draft_model.max_positions
        self._sampler = sampler
        self._block_size = block_size
        self._device = device
        self._buffers = buffers
        # By request, of the steps that may be under way, the latest first.
        self._latest_tokens: deque[dict[int, int]] = deque(maxlen=max(1, steps_ahead))
        self._launched = Batch(())

    @property
    def block_storage(self) -> BlockStorage:
        """The memory of the target's blocks."""
        return self.model.kv_storage

    @torch.inference_mode()
    def launch(self, batch: Batch | Continuation) -> FinishedStep:
        """Make the batch's copies, run its tokens, score and pool prompts, choose a token for each row."""
        if isinstance(batch, Continuation):
            batch = expand(self._launched, batch)
        self._launched = batch
        for copy in batch.block_copies:
            self.model.kv_storage.copy_block(copy.source, copy.target)
        keeps_tokens = self.continues or self.steps_ahead > 0
        if keeps_tokens:
            batch = self._with_pending_tokens(batch)
        model_input = build_model_input(
            batch, block_size=self._block_size, device=self._device, buffers=self._buffers
        )
        output = run_in_torch(self.model, self._sampler, batch, model_input)
        if keeps_tokens:
            self._keep_tokens(batch, output)
        return FinishedStep(output)

    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens with the draft model, whose storage has the target's block ids."""
        assert self.draft_model is not None
        return self.draft_model.draft(jobs)

    def _with_pending_tokens(self, batch: Batch) -> Batch:
        """Put in the tokens that the caller had not read when it built the batch."""
        latest = ChainMap(*self._latest_tokens)
        chunks = [
            chunk._replace(token_ids=(*chunk.token_ids[:-1], latest[chunk.request_id]))
            if chunk.token_ids[-1] == PENDING_TOKEN
            else chunk
            for chunk in batch.chunks
        ]
        return batch._replace(chunks=tuple(chunks))

    def _keep_tokens(self, batch: Batch, output: SamplerOutput) -> None:
        tokens: dict[int, int] = {}
        if not batch.num_draft_tokens:  # nothing is launched ahead of a step with drafts
            sampled = [chunk.request_id for chunk in batch.chunks if chunk.rows]
            tokens = dict(zip(sampled, output.token_ids, strict=True))
        self._latest_tokens.appendleft(tokens)


def run_in_torch(
    model: LoadedModel, sampler: Sampler, batch: Batch, model_input: ModelInput
) -> SamplerOutput:
    """Run a batch with hidden states and logits as tensors."""
    hidden = model(model_input)
    prompt_logprobs, faults = score_prompts(model, sampler.vocab_size, batch, hidden)
    pooled, broken = pool_prompts(model, batch, hidden)
    faults.update(broken, model_input.faults.nonzero().flatten().tolist())
    output, rows = SamplerOutput((), ()), batch.rows
    if rows:
        output = sampler(model.compute_logits(model_input.take_logits_rows(hidden)), rows)
        faults.update(model_input.logits_rows[row] for row in output.faults)
    return output._replace(faults=frozenset(faults), prompt_logprobs=prompt_logprobs, pooled=pooled)
