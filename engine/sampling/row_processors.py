"""Row processors: what a request's history and wishes do to a row of its logits [vocab_size], in place."""

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.interface.sampled_row import RowHistory, SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.sampling.token_bitmask import ApplyBitmask

_NEVER = float("-inf")
_NOTHING = RowHistory()


def process_row(logits: Tensor, row: SampledRow, apply_bitmask: ApplyBitmask) -> None:
    """Apply penalties, bias, bans and grammar, in this order."""
    params, history = row.params, row.history or _NOTHING
    if params.has_penalties:
        apply_penalties(logits, params, history)
    if params.logit_bias:
        apply_logit_bias(logits, params)
    if has_bans(row):
        apply_bans(logits, params, history)
    if history.token_bitmask is not None:
        apply_grammar(logits, history.token_bitmask, apply_bitmask, has_bans=has_bans(row))


def needs_processing(row: SampledRow) -> bool:
    """Tell whether process_row() would change anything."""
    return row.history is not None or bool(row.params.logit_bias) or row.params.allowed_token_ids is not None


def has_bans(row: SampledRow) -> bool:
    """Tell whether some tokens may not come now."""
    is_banned = row.history is not None and bool(row.history.banned_token_ids)
    return is_banned or row.params.allowed_token_ids is not None


def apply_penalties(logits: Tensor, params: SamplingParams, history: RowHistory) -> None:
    """Make repetition less (or more) likely.

    repetition_penalty divides positive and multiplies negative logits of every token of prompt and answer
    (arXiv 1909.05858); then frequency_penalty times its count in the answer and presence_penalty, once,
    are taken off a token of the answer (OpenAI's definition).
    """
    if params.repetition_penalty != 1.0:
        seen = _ids(history.seen_token_ids, logits)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if history.answer_counts:
        token_ids, counts = zip(*history.answer_counts, strict=True)
        amounts = torch.tensor(counts, dtype=torch.float32, device=logits.device)
        logits[_ids(token_ids, logits)] -= amounts * params.frequency_penalty + params.presence_penalty


def apply_logit_bias(logits: Tensor, params: SamplingParams) -> None:
    """Add each token's bias to its logit."""
    biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
    logits[_ids(params.logit_bias, logits)] += biases


def apply_bans(logits: Tensor, params: SamplingParams, history: RowHistory) -> None:
    """Remove tokens that may not come now; bans that would leave nothing are not applied."""
    if params.allowed_token_ids is None:
        allowed = torch.ones_like(logits, dtype=torch.bool)
    else:
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[_ids(params.allowed_token_ids, logits)] = True
    wider = allowed.clone()
    allowed[_ids(history.banned_token_ids, logits)] = False
    logits.masked_fill_(~(allowed if allowed.any() else wider), _NEVER)


def apply_grammar(
    logits: Tensor, token_bitmask: bytes, apply_bitmask: ApplyBitmask, *, has_bans: bool
) -> None:
    """Remove tokens that the grammar does not allow; where nothing else is left, the grammar wins."""
    if not has_bans:  # every logit is finite, so every token that the grammar allows is left
        apply_bitmask(logits, token_bitmask)
        return
    before = logits.clone()
    apply_bitmask(logits, token_bitmask)
    if not logits.isfinite().any():
        logits.copy_(torch.where(before.isfinite(), before, torch.zeros_like(before)))
        apply_bitmask(logits, token_bitmask)


def _ids(token_ids: Iterable[int], logits: Tensor) -> Tensor:
    return torch.tensor(list(token_ids), dtype=torch.int64, device=logits.device)
