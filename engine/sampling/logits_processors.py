"""Logits processors: pure functions from logits [num_rows, vocab_size] to logits of the same shape.

A removed token has the logit -inf. Every row has parameters of its own and is treated alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = float("-inf")

_SUM_PART = 256

HEAD_SIZES = (256, 4096)
"""How many of the largest logits are put in order before the whole row is: nearly always enough."""


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide each row by its temperature, float32 [num_rows], none of them 0."""
    return logits / temperature.unsqueeze(1)


def apply_top_k_top_p(
    logits: Tensor, top_k: Tensor, top_p: Tensor, *, head_sizes: Sequence[int] = HEAD_SIZES
) -> Tensor:
    """Keep the top_k likeliest tokens, then of those the fewest whose share reaches top_p.

    top_k int64 [num_rows] from 1 to vocab_size, top_p float32 [num_rows] in (0, 1]; vocab_size and 1
    keep everything. The likeliest token always stays. Tokens tied with the last one kept all stay, so that
    the kept set is a matter of values and never of the order in which a sort left equals.

    Only the largest logits are put in order, in the rows that need it more and more of them until they
    settle it; the result is the same to the bit for all `head_sizes`.
    """
    vocab_size = logits.shape[1]
    threshold = torch.full_like(logits[:, 0], _NEVER)
    rows = ((top_k < vocab_size) | (top_p < 1.0)).nonzero().flatten()
    for head_size in (*(size for size in head_sizes if size < vocab_size), vocab_size):
        if len(rows) == 0:
            break
        found, is_settled = _threshold_from_head(logits[rows], top_k[rows], top_p[rows], head_size)
        threshold[rows] = found
        rows = rows[~is_settled]
    return logits.masked_fill(logits < threshold.unsqueeze(1), _NEVER)


def _threshold_from_head(
    logits: Tensor, top_k: Tensor, top_p: Tensor, head_size: int
) -> tuple[Tensor, Tensor]:
    """Return each row's smallest kept logit, and whether the head was long enough to know it."""
    num_rows, vocab_size = logits.shape
    head = logits.topk(head_size, dim=-1).values
    limits_k, limits_p = top_k < vocab_size, top_p < 1.0
    kth = head.gather(1, top_k.clamp(max=head_size).unsqueeze(1) - 1)
    kth = kth.masked_fill(~limits_k.unsqueeze(1), _NEVER)
    # Shares of what top_k leaves; the sum runs over the row as it lies, whatever the head.
    highest = head[:, :1]
    kept_mass = _sum_rows((logits - highest).exp().masked_fill(logits < kth, 0.0)).unsqueeze(1)
    mass = ((head - highest).exp() / kept_mass).masked_fill(head < kth, 0.0).cumsum(dim=-1)
    num_below = (mass < top_p.unsqueeze(1)).sum(dim=-1, keepdim=True)  # tokens before the one that reaches it
    nucleus = head.gather(1, num_below.clamp(max=head_size - 1))
    threshold = torch.where(limits_p.unsqueeze(1), torch.maximum(kth, nucleus), kth)
    k_is_settled = ~limits_k | (top_k <= head_size)
    p_is_settled = ~limits_p | (num_below[:, 0] < head_size) | (limits_k & (top_k < head_size))
    is_settled = (k_is_settled & p_is_settled) | (head_size == vocab_size)
    return threshold[:, 0], is_settled.expand(num_rows)


def _sum_rows(x: Tensor) -> Tensor:
    """Sum [num_rows, size] over rows in an order that depends on `size` alone.

    torch sums a single long row in as many parts as there are threads, but several rows one by one.
    """
    num_rows, size = x.shape
    return F.pad(x, (0, -size % _SUM_PART)).view(num_rows, -1, _SUM_PART).sum(dim=-1).sum(dim=-1)


def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Remove tokens less likely than min_p times the likeliest; min_p float32 [num_rows] in [0, 1]."""
    threshold = logits.amax(dim=-1) + min_p.log()
    return logits.masked_fill(logits < threshold.unsqueeze(1), _NEVER)


def apply_typical_p(logits: Tensor, typical_p: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest the row's entropy, the fewest whose share reaches typical_p.

    typical_p float32 [num_rows] in (0, 1]; 1 keeps everything; ties stay together (arXiv 2202.00666).
    """
    logprobs = logits.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    entropy = -_sum_rows((probabilities * logprobs).nan_to_num(0.0)).unsqueeze(1)
    distance = (-logprobs - entropy).abs()  # inf for removed tokens: they come last
    ordered, order = distance.sort(dim=-1)
    mass = probabilities.gather(1, order).cumsum(dim=-1)
    num_below = (mass < typical_p.unsqueeze(1)).sum(dim=-1, keepdim=True)
    limit = ordered.gather(1, num_below.clamp(max=logits.shape[1] - 1))
    removed = (distance > limit) & (typical_p < 1.0).unsqueeze(1)
    return logits.masked_fill(removed, _NEVER)
