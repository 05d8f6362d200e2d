"""TorchExecutor: steps in plain torch on any device; the reference of every other executor."""

from collections import ChainMap, deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.core.executor import DraftJob, DraftOutput, FinishedStep
from engine.execution.draft_model import DraftModel, LoadedModel
from engine.interface.batch import PENDING_TOKEN, Batch, SamplerOutput
from engine.interface.outputs import TokenLogprobs
from engine.kv_cache.persistence import BlockStorage
from engine.model.decoder import Decoder
from engine.model.input_buffers import InputBuffers
from engine.model.kv_storage import KVStorage
from engine.model.model_input import ModelInput, build_model_input
from engine.model.pooling import fixed_point_sum
from engine.sampling.logprobs import token_logprobs
from engine.sampling.sampler import Sampler, broken_rows

_SCORED_ROWS = 64  # prompt tokens scored at once: bounds the logits held to this many rows


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
    """Hidden states and logits as tensors, which every parameter can work on."""

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
    ) -> None:
        self.model = model
        self.draft_model = draft_model
        self.steps_ahead = steps_ahead
        self.max_draft_positions = 0 if draft_model is None else draft_model.max_positions
        self._sampler = sampler
        self._block_size = block_size
        self._device = device
        self._buffers = buffers
        # By request, of the steps that may be under way, the latest first.
        self._latest_tokens: deque[dict[int, int]] = deque(maxlen=steps_ahead)

    @property
    def block_storage(self) -> BlockStorage:
        """The memory of the target's blocks."""
        return self.model.kv_storage

    @torch.inference_mode()
    def launch(self, batch: Batch) -> FinishedStep:
        """Make the batch's copies, run its tokens, score and pool prompts, choose a token for each row."""
        for copy in batch.block_copies:
            self.model.kv_storage.copy_block(copy.source, copy.target)
        if self.steps_ahead:
            batch = self._with_pending_tokens(batch)
        model_input = build_model_input(
            batch, block_size=self._block_size, device=self._device, buffers=self._buffers
        )
        output = run_in_torch(self.model, self._sampler, batch, model_input)
        if self.steps_ahead:
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
    prompt_logprobs, faults = _score_prompts(model, sampler.vocab_size, batch, hidden)
    pooled, broken = _pool_prompts(model, batch, hidden)
    faults.update(broken, model_input.faults.nonzero().flatten().tolist())
    output, rows = SamplerOutput((), ()), batch.rows
    if rows:
        output = sampler(model.compute_logits(model_input.take_logits_rows(hidden)), rows)
        faults.update(model_input.logits_rows[row] for row in output.faults)
    return output._replace(faults=frozenset(faults), prompt_logprobs=prompt_logprobs, pooled=pooled)


def _score_prompts(
    model: LoadedModel, vocab_size: int, batch: Batch, hidden: Tensor
) -> tuple[tuple[tuple[TokenLogprobs, ...], ...], set[int]]:
    """Return the logprobs of prompt tokens, chunk by chunk, and the tokens with broken logits."""
    scores, start, faults = list[tuple[TokenLogprobs, ...]](), 0, set[int]()
    for chunk in batch.chunks:
        if chunk.scored is not None:
            first, targets, found = start + chunk.scored.first_row, chunk.scored.token_ids, []
            for offset in range(0, len(targets), _SCORED_ROWS):
                part = targets[offset : offset + _SCORED_ROWS]
                rows = hidden[first + offset : first + offset + len(part)]
                logits = model.compute_logits(rows)[:, :vocab_size]
                found += token_logprobs(logits, part, [chunk.scored.num_top] * len(part))
                faults.update(first + offset + row for row in broken_rows(logits))
            scores.append(tuple(found))
        start += chunk.num_tokens
    return tuple(scores), faults


def _pool_prompts(model: LoadedModel, batch: Batch, hidden: Tensor) -> tuple[tuple[bytes, ...], set[int]]:
    """Return the sum of each chunk that is pooled, and the tokens whose hidden states are not finite."""
    sums, start, faults = list[bytes](), 0, set[int]()
    for chunk in batch.chunks:
        if chunk.pooled_from is not None:
            first = start + chunk.pooled_from
            rows = model.normalize(hidden[first : start + chunk.num_tokens])
            is_broken = ~rows.isfinite().all(dim=-1)
            faults.update(first + row for row in is_broken.nonzero().flatten().tolist())
            sums.append(fixed_point_sum(rows.nan_to_num()).cpu().numpy().astype("<i8").tobytes())
        start += chunk.num_tokens
    return tuple(sums), faults
