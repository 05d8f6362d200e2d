"""ModelInput: a batch as the tensors that one forward pass reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention_tiles import QuerySpan, TileGroup, build_tile_groups
from engine.batch import Batch, ScheduledChunk


@dataclass(frozen=True)
class ModelInput:
    """Tokens of all requests of a step, one after the other."""

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    slot_mapping: Tensor  # int64 [num_tokens] where in the KV storage each token goes
    logits_rows: (
        Tensor  # int64 [num_rows] the tokens whose logits choose the next: a request's last, and its drafts
    )
    tile_groups: list[TileGroup]


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Consecutive tokens of one sequence that go through a model together."""

    token_ids: Sequence[int]
    first_position: int
    block_ids: list[int]
    num_logits: int  # of the last tokens, whose logits are wanted


def build_model_input(batch: Batch, *, block_size: int, device: torch.device) -> ModelInput:
    """Lay out the chunks of a batch, in order; the slots were allocated by the scheduler."""
    return lay_out([_span(chunk) for chunk in batch.chunks], block_size=block_size, device=device)


def lay_out(spans: Sequence[TokenSpan], *, block_size: int, device: torch.device) -> ModelInput:
    """Put spans one after the other; every position has its slot in the block table."""
    token_ids: list[int] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    logits_rows: list[int] = []
    queries: list[QuerySpan] = []
    for span in spans:
        first, num_tokens = span.first_position, len(span.token_ids)
        queries.append(QuerySpan(len(token_ids), num_tokens, first, span.block_ids))
        token_ids.extend(span.token_ids)
        logits_rows.extend(range(len(token_ids) - span.num_logits, len(token_ids)))
        span_positions = np.arange(first, first + num_tokens)
        positions.append(span_positions)
        slots.append(_slots(span_positions, span.block_ids, block_size))
    return ModelInput(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        slot_mapping=torch.from_numpy(np.concatenate(slots)).to(device),
        logits_rows=torch.tensor(logits_rows, dtype=torch.int64, device=device),
        tile_groups=build_tile_groups(queries, block_size=block_size, device=device),
    )


def _span(chunk: ScheduledChunk) -> TokenSpan:
    request, first = chunk.request, chunk.request.num_computed_tokens
    token_ids = request.token_ids[first : first + chunk.num_tokens]
    token_ids.extend(chunk.draft_token_ids)
    num_logits = 1 + len(chunk.draft_token_ids) if chunk.is_sampled else 0
    return TokenSpan(token_ids, first, request.block_ids, num_logits)


def _slots(positions: np.ndarray, block_ids: list[int], block_size: int) -> np.ndarray:
    first_block = int(positions[0]) // block_size
    table = np.array(block_ids[first_block : int(positions[-1]) // block_size + 1])
    slots: np.ndarray = table[positions // block_size - first_block] * block_size + positions % block_size
    return slots
