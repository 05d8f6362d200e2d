"""Sampler: one token per row, a pure function of (logits, parameters, seed, choice, position)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.request import Request
from engine.sampling.logits_processors import (
    apply_min_p,
    apply_temperature,
    apply_top_k_top_p,
    ban_tokens,
)
from engine.sampling.noise import gumbel_noise, noise_key

_NO_TOKENS: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SamplerOutput:
    """What a step chose."""

    token_ids: tuple[int, ...]  # one per sampled request, in batch order


class Sampler:
    """Gumbel-max sampling: argmax(processed logits + noise); greedy rows have no noise.

    `vocab_size` is the number of tokens that the tokenizer knows; logits beyond it are padding rows of
    the checkpoint and never win.
    """

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> SamplerOutput:
        """Choose a token for each request from its row of [num_requests, >= vocab_size]."""
        logits = logits[:, : self.vocab_size].float()
        logits = ban_tokens(logits, [banned_tokens(request) for request in requests])
        token_ids = logits.argmax(dim=-1)
        sampled = [row for row, request in enumerate(requests) if not request.params.is_greedy]
        if sampled:
            rows = torch.tensor(sampled, device=logits.device)
            token_ids[rows] = self._sample(logits[rows], [requests[row] for row in sampled])
        return SamplerOutput(tuple(token_ids.tolist()))

    def _sample(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        device = logits.device
        params = [request.params for request in requests]
        temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=device)
        logits = apply_temperature(logits, temperature)
        if any(p.top_k > 0 or p.top_p < 1.0 for p in params):
            top_k = torch.tensor([self._effective_top_k(p.top_k) for p in params], device=device)
            top_p = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=device)
            logits = apply_top_k_top_p(logits, top_k, top_p)
        if any(p.min_p > 0.0 for p in params):
            min_p = torch.tensor([p.min_p for p in params], dtype=torch.float32, device=device)
            logits = apply_min_p(logits, min_p)
        keys = [noise_key(request.seed, request.choice, request.num_tokens) for request in requests]
        return (logits + gumbel_noise(keys, logits.shape[1], device=device)).argmax(dim=-1)

    def _effective_top_k(self, top_k: int) -> int:
        return min(top_k, self.vocab_size) if top_k > 0 else self.vocab_size


def banned_tokens(request: Request) -> frozenset[int]:
    """Return the tokens that may not come now: stop tokens before min_tokens is reached."""
    if request.num_output_tokens < request.params.min_tokens:
        return request.stop_token_ids
    return _NO_TOKENS
