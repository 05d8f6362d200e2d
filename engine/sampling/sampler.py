"""Sampler: one token per row, a pure function of (logits, parameters, seed, choice, position)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.outputs import TokenLogprobs
from engine.request import Request
from engine.sampling.logits_processors import (
    apply_min_p,
    apply_temperature,
    apply_top_k_top_p,
    apply_typical_p,
)
from engine.sampling.logprobs import token_logprobs
from engine.sampling.noise import gumbel_noise, noise_key
from engine.sampling.row_processors import needs_processing, process_row
from engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class SamplerOutput:
    """What a step chose, for each sampled request in batch order."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]


class Sampler:
    """Gumbel-max sampling: argmax(processed logits + noise); greedy rows have no noise.

    `vocab_size` is the number of tokens that the tokenizer knows; logits beyond it are padding rows of
    the checkpoint and never win.
    """

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> SamplerOutput:
        """Choose a token for each request from its row of [num_requests, >= vocab_size]."""
        raw = logits[:, : self.vocab_size].float()
        processed = raw
        if any(needs_processing(request) for request in requests):
            processed = raw.clone()
            for row, request in zip(processed, requests, strict=True):
                process_row(row, request)
        tokens = processed.argmax(dim=-1)
        filtered = processed
        sampled = [row for row, request in enumerate(requests) if not request.params.is_greedy]
        if sampled:
            rows = torch.tensor(sampled, device=logits.device)
            chosen = [requests[row] for row in sampled]
            survivors = apply_filters(processed[rows], [request.params for request in chosen])
            tokens[rows] = draw(survivors, chosen)
            if any(request.params.processed_logprobs for request in chosen):
                filtered = processed.index_copy(0, rows, survivors)
        token_ids = tokens.tolist()
        return SamplerOutput(tuple(token_ids), chosen_logprobs(raw, filtered, token_ids, requests))


def apply_filters(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Apply temperature, top-k, top-p, min-p and typical-p to rows [num_rows, vocab_size], none greedy."""
    vocab_size, device = logits.shape[1], logits.device

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(p, name) for p in params], dtype=torch.float32, device=device)

    logits = apply_temperature(logits, column("temperature"))
    if any(p.top_k > 0 or p.top_p < 1.0 for p in params):
        top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
        logits = apply_top_k_top_p(logits, torch.tensor(top_k, device=device), column("top_p"))
    if any(p.min_p > 0.0 for p in params):
        logits = apply_min_p(logits, column("min_p"))
    if any(p.typical_p < 1.0 for p in params):
        rows = (column("typical_p") < 1.0).nonzero().flatten()  # it sorts whole rows: only those that ask
        logits = logits.index_copy(0, rows, apply_typical_p(logits[rows], column("typical_p")[rows]))
    return logits


def draw(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Sample a token from each row, with the noise of the request's next position."""
    keys = [noise_key(request.seed, request.choice, request.num_tokens) for request in requests]
    return gumbel_noise(keys, logits.shape[1], device=logits.device).add_(logits).argmax(dim=-1)


def chosen_logprobs(
    raw: Tensor, processed: Tensor, token_ids: Sequence[int], requests: Sequence[Request]
) -> tuple[TokenLogprobs | None, ...]:
    """Return the logprobs of the chosen tokens, None for requests that want none."""
    results: list[TokenLogprobs | None] = [None] * len(requests)
    for logits, is_processed in ((raw, False), (processed, True)):
        rows = [
            row
            for row, request in enumerate(requests)
            if request.params.logprobs is not None and request.params.processed_logprobs is is_processed
        ]
        if rows:
            num_top = [requests[row].params.logprobs or 0 for row in rows]
            found = token_logprobs(logits[rows], [token_ids[row] for row in rows], num_top)
            for row, logprobs in zip(rows, found, strict=True):
                results[row] = logprobs
    return tuple(results)
