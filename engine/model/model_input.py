"""ModelInput: a batch as what one forward pass reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from engine.interface.batch import Batch
from engine.model.attention_tiles import QuerySpan, TileGroup, build_tile_groups
from engine.model.input_buffers import InputBuffers, InputTensors


@dataclass(frozen=True)
class ModelInput:
    """Tokens of all requests of a step, one after the other.

    Tensors are made when a model first asks for them: the CPU kernels read the spans alone.
    """

    token_id_list: list[int]  # [num_tokens]
    spans: list[QuerySpan]
    logits_rows: list[int]  # [num_rows] tokens whose logits choose the next: a request's last, and its drafts
    block_size: int
    device: torch.device
    buffers: InputBuffers | None = None

    def take_logits_rows(self, hidden: Tensor) -> Tensor:
        """Return the rows of [num_tokens, ...] whose logits are wanted: no copy if all are."""
        return hidden if len(self.logits_rows) == len(self.token_id_list) else hidden[self.logits_rows]

    @cached_property
    def tensors(self) -> InputTensors:
        """The step as tensors: in `buffers`, if there are any and they hold it."""
        buffers = self.buffers
        if buffers is None or not buffers.fits(self.token_id_list, self.spans):
            buffers = InputBuffers.sized_for(self.token_id_list, self.spans, self.device)
        return buffers.fill(self.token_id_list, self.spans, self.block_size)

    @cached_property
    def tile_groups(self) -> list[TileGroup]:
        """How attention in plain torch cuts the queries."""
        return build_tile_groups(self.spans, block_size=self.block_size, device=self.device)

    @cached_property
    def faults(self) -> Tensor:
        """Where, in bool [num_tokens], a model marks the tokens whose keys or values are not finite."""
        return torch.zeros(len(self.token_id_list), dtype=torch.bool, device=self.device)


class TokenSpan(NamedTuple):
    """Consecutive tokens of one sequence that go through a model together."""

    token_ids: Sequence[int]
    first_position: int
    block_ids: Sequence[int]
    num_logits: int  # of the last tokens, whose logits are wanted


def build_model_input(
    batch: Batch, *, block_size: int, device: torch.device, buffers: InputBuffers | None = None
) -> ModelInput:
    """Lay out the chunks of a batch, in order; the slots were allocated by the scheduler."""
    spans = [TokenSpan(c.token_ids, c.first_position, c.block_ids, len(c.rows)) for c in batch.chunks]
    return lay_out(spans, block_size=block_size, device=device, buffers=buffers)


def lay_out(
    spans: Sequence[TokenSpan],
    *,
    block_size: int,
    device: torch.device,
    buffers: InputBuffers | None = None,
) -> ModelInput:
    """Put spans one after the other; every position has its slot in the block table."""
    token_ids: list[int] = []
    logits_rows: list[int] = []
    queries: list[QuerySpan] = []
    for span in spans:
        queries.append(QuerySpan(len(token_ids), len(span.token_ids), span.first_position, span.block_ids))
        token_ids += span.token_ids
        logits_rows += range(len(token_ids) - span.num_logits, len(token_ids))
    return ModelInput(token_ids, queries, logits_rows, block_size, device, buffers)
