"""Prompts that are scored or pooled: what is read off their hidden states, chunk by chunk."""

from typing import Protocol

from torch import Tensor

from engine.interface.batch import Batch
from engine.interface.outputs import TokenLogprobs
from engine.model.pooling import fixed_point_sum
from engine.sampling.logprobs import token_logprobs
from engine.sampling.sampler import broken_rows

_SCORED_ROWS = 64  # prompt tokens scored at once: bounds the logits held to this many rows


class HiddenReader(Protocol):
    """What comes behind the layers of a model."""

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the model's last norm to rows of hidden states: [num_rows, hidden_size]."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits [num_rows, vocab_size]."""


def score_prompts(
    model: HiddenReader, vocab_size: int, batch: Batch, hidden: Tensor
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


def pool_prompts(model: HiddenReader, batch: Batch, hidden: Tensor) -> tuple[tuple[bytes, ...], set[int]]:
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
