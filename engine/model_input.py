"""ModelInput: a batch as the tensors that one forward pass reads."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention_tiles import QuerySpan, TileGroup, build_tile_groups
from engine.batch import Batch


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


def build_model_input(batch: Batch, *, block_size: int, device: torch.device) -> ModelInput:
    """Lay out the chunks of a batch, in order; the slots were allocated by the scheduler."""
    token_ids: list[int] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    logits_rows: list[int] = []
    spans: list[QuerySpan] = []
    for chunk in batch.chunks:
        request, first = chunk.request, chunk.request.num_computed_tokens
        spans.append(QuerySpan(len(token_ids), chunk.num_tokens, first, request.block_ids))
        token_ids.extend(request.token_ids[first : first + chunk.num_tokens])
        token_ids.extend(chunk.draft_token_ids)
        if chunk.is_sampled:
            logits_rows.extend(range(len(token_ids) - 1 - len(chunk.draft_token_ids), len(token_ids)))
        span_positions = np.arange(first, first + chunk.num_tokens)
        positions.append(span_positions)
        slots.append(_slots(span_positions, request.block_ids, block_size))
    return ModelInput(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        slot_mapping=torch.from_numpy(np.concatenate(slots)).to(device),
        logits_rows=torch.tensor(logits_rows, dtype=torch.int64, device=device),
        tile_groups=build_tile_groups(spans, block_size=block_size, device=device),
    )


def _slots(positions: np.ndarray, block_ids: list[int], block_size: int) -> np.ndarray:
    first_block = int(positions[0]) // block_size
    table = np.array(block_ids[first_block : int(positions[-1]) // block_size + 1])
    slots: np.ndarray = table[positions // block_size - first_block] * block_size + positions % block_size
    return slots
