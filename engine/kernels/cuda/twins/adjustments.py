"""Penalties, bias, bans and grammar as engine/kernels/cuda/adjustments.py applies them, row by row."""

import torch
from torch import Tensor

from engine.kernels.cuda import packed_adjustments as packing
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.twins.token_counts import penalise_by_counts

_NEVER = float("-inf")


def adjust(
    logits: Tensor,
    adjusted: Tensor,
    packed: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    counts: Tensor | None = None,
) -> None:
    """Write rows that something changes to `adjusted`, and to workspace.is_adjusted which they are."""
    entries = packed[1 : 1 + int(packed[0]) * packing.ENTRY_WORDS].view(-1, packing.ENTRY_WORDS)
    entry_of = {int(entry[packing.ROW]): entry for entry in entries}
    for row in range(num_rows):
        x = logits[row, :vocab_size].clone()
        is_counted = counts is not None and penalise_by_counts(x, row, buffers, state, counts)
        if row in entry_of:
            _apply(x, entry_of[row], packed)
        workspace.is_adjusted[row] = is_counted or row in entry_of
        if is_counted or row in entry_of:
            adjusted[row, :vocab_size] = x


def _apply(x: Tensor, entry: Tensor, packed: Tensor) -> None:
    """Change a row of logits in place."""
    penalty, frequency, presence = entry[: packing.PRESENCE + 1].view(torch.float32)[packing.REPETITION :]
    seen, _ = _list(packed, entry, packing.SEEN)
    x[seen] = torch.where(x[seen] > 0, x[seen] / penalty, x[seen] * penalty)
    counted, times = _list(packed, entry, packing.COUNTED)
    x[counted] -= times.float() * frequency + presence
    biased, biases = _list(packed, entry, packing.BIASED)
    x[biased] += biases.view(torch.float32)
    x[_list(packed, entry, packing.BANNED)[0]] = _NEVER
    if entry[packing.ALLOWED_WORDS] >= 0:
        x.masked_fill_(~_mask(packed, entry, packing.ALLOWED, len(x)), _NEVER)
    if entry[packing.GRAMMAR_WORDS] >= 0:
        is_right = _mask(packed, entry, packing.GRAMMAR, len(x))
        if entry[packing.HAS_BANS] and not (x.isfinite() & is_right).any():
            x.masked_fill_(~x.isfinite(), 0.0)
        x.masked_fill_(~is_right, _NEVER)


def _list(packed: Tensor, entry: Tensor, field: int) -> tuple[Tensor, Tensor]:
    """Return a list's token ids, and as many words behind them."""
    offset, length = int(entry[field]), int(entry[field + 1])
    return packed[offset : offset + length].long(), packed[offset + length : offset + 2 * length]


def _mask(packed: Tensor, entry: Tensor, field: int, vocab_size: int) -> Tensor:
    """Return a bool per token."""
    offset, length = int(entry[field]), int(entry[field + 1])
    bits = (packed[offset : offset + length].unsqueeze(1) >> torch.arange(32, device=packed.device)) & 1
    mask = torch.zeros(max(vocab_size, bits.numel()), dtype=torch.bool, device=packed.device)
    mask[: bits.numel()] = bits.flatten() != 0
    return mask[:vocab_size]
