"""Logits processors: pure functions from logits [num_rows, vocab_size] to logits of the same shape.

A removed token has the logit -inf. Every row has parameters of its own and is treated alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_NEVER = float("-inf")


def ban_tokens(logits: Tensor, banned: Sequence[frozenset[int]]) -> Tensor:
    """Remove each row's banned tokens, in place."""
    for row, token_ids in enumerate(banned):
        if token_ids:
            logits[row, list(token_ids)] = _NEVER
    return logits


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide each row by its temperature, float32 [num_rows], none of them 0."""
    return logits / temperature.unsqueeze(1)


def apply_top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the top_k likeliest tokens, then of those the fewest whose share reaches top_p.

    top_k int64 [num_rows] from 1 to vocab_size, top_p float32 [num_rows] in (0, 1]; vocab_size and 1
    keep everything. The likeliest token always stays. Tokens tied with the last one kept all stay, so that
    the kept set is a matter of values and never of the order in which a sort left equals.
    """
    ordered = logits.sort(dim=-1, descending=True).values
    kth = ordered.gather(1, top_k.unsqueeze(1) - 1)
    probabilities = ordered.masked_fill(ordered < kth, _NEVER).softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    num_kept = (mass_before < top_p.unsqueeze(1)).sum(dim=-1, keepdim=True)
    threshold = torch.maximum(kth, ordered.gather(1, num_kept - 1))
    keep_all = (top_p >= 1.0).unsqueeze(1)  # rounding of the sum must not cut an unfiltered tail
    return logits.masked_fill(logits < torch.where(keep_all, kth, threshold), _NEVER)


def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Remove tokens less likely than min_p times the likeliest; min_p float32 [num_rows] in [0, 1]."""
    threshold = logits.amax(dim=-1) + min_p.log()
    return logits.masked_fill(logits < threshold.unsqueeze(1), _NEVER)
