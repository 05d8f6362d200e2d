"""Row processors: what a request's history and wishes do to a row of its logits [vocab_size], in place."""

import torch
from torch import Tensor

from engine.sampled_row import SampledRow
from engine.sampling_params import SamplingParams

_NEVER = float("-inf")


def process_row(logits: Tensor, at: SampledRow) -> None:
    """Apply penalties, bias, bans and grammar, in this order."""
    params = at.params
    if params.has_penalties:
        apply_penalties(logits, at)
    if params.logit_bias:
        apply_logit_bias(logits, params)
    if has_bans(at):
        apply_bans(logits, at)
    if at.grammar_state is not None:
        apply_grammar(logits, at)


def needs_processing(at: SampledRow) -> bool:
    """Tell whether process_row() would change anything."""
    params = at.params
    return bool(params.has_penalties or params.logit_bias or at.grammar_state is not None or has_bans(at))


def has_bans(at: SampledRow) -> bool:
    """Tell whether some tokens may not come now."""
    params = at.params
    return bool(
        params.allowed_token_ids is not None
        or params.banned_sequences
        or at.num_output_tokens < params.min_tokens
    )


def apply_penalties(logits: Tensor, at: SampledRow) -> None:
    """Make repetition less (or more) likely.

    repetition_penalty divides positive and multiplies negative logits of every token of prompt and answer
    (arXiv 1909.05858); then frequency_penalty times its count in the answer and presence_penalty, once,
    are taken off a token of the answer (OpenAI's definition).
    """
    params = at.params
    if params.repetition_penalty != 1.0:
        seen = _ids(set(at.token_ids), logits)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if at.answer_counts and (params.frequency_penalty or params.presence_penalty):
        counts = torch.tensor(list(at.answer_counts.values()), dtype=torch.float32, device=logits.device)
        logits[_ids(at.answer_counts, logits)] -= counts * params.frequency_penalty + params.presence_penalty


def apply_logit_bias(logits: Tensor, params: SamplingParams) -> None:
    """Add each token's bias to its logit."""
    biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
    logits[_ids(params.logit_bias, logits)] += biases


def apply_bans(logits: Tensor, at: SampledRow) -> None:
    """Remove tokens that may not come now; bans that would leave nothing are not applied."""
    params = at.params
    banned = banned_tokens(at)
    if params.allowed_token_ids is None:
        allowed = torch.ones_like(logits, dtype=torch.bool)
    else:
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[_ids(params.allowed_token_ids, logits)] = True
    wider = allowed.clone()
    allowed[_ids(banned, logits)] = False
    logits.masked_fill_(~(allowed if allowed.any() else wider), _NEVER)


def banned_tokens(at: SampledRow) -> set[int]:
    """Return the stop tokens before min_tokens, and every token that would end a banned sequence."""
    params = at.params
    banned = set(at.stop_token_ids) if at.num_output_tokens < params.min_tokens else set()
    for sequence in params.banned_sequences:
        *before, last = sequence
        start = at.num_tokens - len(before)
        if start >= at.num_prompt_tokens and at.token_ids[start:] == before:
            banned.add(last)
    return banned


def apply_grammar(logits: Tensor, at: SampledRow) -> None:
    """Remove tokens that the grammar does not allow; where nothing else is left, the grammar wins."""
    assert at.grammar_state is not None
    if not has_bans(at):  # every logit is finite, so every token that the grammar allows is left
        at.grammar_state.mask_logits(logits)
        return
    before = logits.clone()
    at.grammar_state.mask_logits(logits)
    if not logits.isfinite().any():
        logits.copy_(torch.where(before.isfinite(), before, torch.zeros_like(before)))
        at.grammar_state.mask_logits(logits)


def _ids(token_ids: object, logits: Tensor) -> Tensor:
    return torch.tensor(list(token_ids), dtype=torch.int64, device=logits.device)  # type: ignore[call-overload]
