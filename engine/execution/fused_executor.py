"""FusedExecutor: steps in the CPU kernels, from tokens to tokens in one call."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.core.executor import DraftJob, DraftOutput, FinishedStep
from engine.execution.draft_model import DraftModel
from engine.execution.torch_executor import run_in_torch
from engine.interface.batch import Batch, Continuation, SamplerOutput
from engine.interface.outputs import TokenLogprobs
from engine.interface.sampled_row import SampledRow
from engine.kernels.cpu.fused_decoder import FusedDecoder
from engine.kernels.cpu.library import KernelContext
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.kernels.cpu.token_chooser import row_sampling
from engine.kv_cache.persistence import BlockStorage
from engine.model.model_input import ModelInput, build_model_input
from engine.sampling.sampler import Sampler, is_simple

_CPU = torch.device("cpu")


class FusedModel(NamedTuple):
    """A model of the kernels, bound to its keys and values."""

    decoder: FusedDecoder
    kv_storage: TiledKVStorage

    def __call__(self, model_input: ModelInput) -> Tensor:
        """Return hidden states [num_tokens, ...] and write the step's keys and values."""
        return self.decoder(model_input, self.kv_storage)

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the model's last norm to rows of hidden states: [num_rows, hidden_size]."""
        return self.decoder.normalize(hidden)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits [num_rows, vocab_size]."""
        return self.decoder.compute_logits(hidden)


class FusedExecutor:
    """The model, its head and the choice of tokens in one call.

    Only rows whose logits somebody sees or changes leave it, with their logits; which way a row goes
    depends on the row alone.
    """

    steps_ahead = 0
    continues = False

    def __init__(
        self,
        context: KernelContext,
        model: FusedModel,
        sampler: Sampler,
        *,
        block_size: int,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.model = model
        self.draft_model = draft_model
        self.max_draft_positions = 0 if draft_model is None else draft_model.max_positions
        self._context = context
        self._sampler = sampler
        self._block_size = block_size

    @property
    def block_storage(self) -> BlockStorage:
        """The memory of the target's blocks."""
        return self.model.kv_storage

    def launch(self, batch: Batch | Continuation) -> FinishedStep:
        """Make the batch's copies, run its tokens, score and pool prompts, choose a token for each row."""
        assert isinstance(batch, Batch)
        for copy in batch.block_copies:
            self.model.kv_storage.copy_block(copy.source, copy.target)
        model_input = build_model_input(batch, block_size=self._block_size, device=_CPU)
        if batch.reads_hidden_states:
            with torch.inference_mode():
                return FinishedStep(run_in_torch(self.model, self._sampler, batch, model_input))
        rows = batch.rows
        special = [number for number, row in enumerate(rows) if not is_simple(row)]
        if not special:
            token_ids, faults = self._step(model_input, rows, None)
            return FinishedStep(SamplerOutput(tuple(token_ids), (None,) * len(rows), faults))
        with torch.inference_mode():
            return FinishedStep(self._step_with_logits(model_input, rows, special))

    def draft(self, jobs: Sequence[DraftJob]) -> DraftOutput:
        """Guess tokens with the draft model, whose storage has the target's block ids."""
        assert self.draft_model is not None
        return self.draft_model.draft(jobs)

    def _step_with_logits(
        self, model_input: ModelInput, rows: Sequence[SampledRow], special: Sequence[int]
    ) -> SamplerOutput:
        """Choose the tokens of the special rows, by number, in torch; all others in the step itself."""
        logits = torch.empty(len(rows), self.model.decoder.config.vocab_size)
        token_ids, faults = self._step(model_input, [_plain(row) for row in rows], logits)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        wanted = logits if len(special) == len(rows) else logits[special]
        chosen = self._sampler.choose_with_logprobs(wanted, [rows[number] for number in special])
        for number, token_id, score in zip(special, *chosen, strict=True):
            token_ids[number], logprobs[number] = token_id, score
        return SamplerOutput(tuple(token_ids), tuple(logprobs), faults)

    def _step(
        self, model_input: ModelInput, rows: Sequence[SampledRow | None], logits: Tensor | None
    ) -> tuple[list[int], frozenset[int]]:
        """Return a token for each of `rows`, which belong to model_input.logits_rows in order, and faults.

        Rows of None are greedy. Faults are the tokens whose keys, values or logits are not finite.
        """
        arrays, count = self.model.decoder.arrays(model_input), len(rows)
        faults = (ctypes.c_uint8 * arrays.num_tokens)()
        token_ids = (ctypes.c_int64 * count)()
        self._context.library.draftline_step(
            self._context.handle,
            self.model.decoder.struct,
            self.model.kv_storage.tiles,
            *arrays.arguments,
            (ctypes.c_int32 * count)(*model_input.logits_rows),
            count,
            b"".join([row_sampling(row) for row in rows]),
            self._sampler.vocab_size,
            None if logits is None else logits.data_ptr(),
            token_ids,
            faults,
        )
        return list(token_ids), _marked(faults)


def _plain(row: SampledRow) -> SampledRow | None:
    """Return the row if the kernels can choose its token; None if they cannot."""
    return row if is_simple(row) else None


def _marked(faults: "ctypes.Array[ctypes.c_uint8]") -> frozenset[int]:
    """Return the numbers of the rows that are marked, of which there are none in a sound model."""
    content = bytes(faults)
    if content.count(0) == len(content):
        return frozenset()
    return frozenset(row for row, is_faulty in enumerate(content) if is_faulty)
