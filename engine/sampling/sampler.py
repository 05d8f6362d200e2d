"""Sampler: one token per row, a pure function of (logits, parameters, seed, choice, position)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.interface.batch import SamplerOutput
from engine.interface.outputs import TokenLogprobs
from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.sampling.logits_processors import (
    apply_min_p,
    apply_temperature,
    apply_top_k_top_p,
    apply_typical_p,
)
from engine.sampling.logprobs import token_logprobs
from engine.sampling.noise import NoiseKey, gumbel_noise, noise_key
from engine.sampling.row_processors import needs_processing, process_row
from engine.sampling.token_bitmask import ApplyBitmask, apply_token_bitmask


class TokenChooser(Protocol):
    """A faster way from processed logits to tokens, for parameters that it knows."""

    def __call__(self, logits: Tensor, rows: Sequence[SampledRow | None]) -> list[int]:
        """Return a token for each row of [num_rows, vocab_size]; the likeliest where it is None."""


class Sampler:
    """Gumbel-max sampling: argmax(processed logits + noise); greedy rows have no noise.

    A request has one row in a step, or several while drafts are verified: each is treated as if it were
    alone. `vocab_size` is the number of tokens that the tokenizer knows; logits beyond it are padding rows
    of the checkpoint and never win.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        chooser: TokenChooser | None = None,
        apply_bitmask: ApplyBitmask = apply_token_bitmask,
    ) -> None:
        self.vocab_size = vocab_size
        self._chooser = chooser
        self._apply_bitmask = apply_bitmask

    def __call__(self, logits: Tensor, rows: Sequence[SampledRow]) -> SamplerOutput:
        """Choose a token for each row of [num_rows, >= vocab_size], which may be overwritten.

        The faults of the output are numbers of rows here.
        """
        faults = broken_rows(logits[:, : self.vocab_size])
        return SamplerOutput(*self.choose_with_logprobs(logits, rows), faults)

    def choose_with_logprobs(
        self, logits: Tensor, rows: Sequence[SampledRow]
    ) -> tuple[tuple[int, ...], tuple[TokenLogprobs | None, ...]]:
        """Do the same for logits whose faults somebody else has looked for."""
        raw = logits[:, : self.vocab_size].float()
        filtered, token_ids = self._choose(raw, rows)
        return tuple(token_ids), chosen_logprobs(raw, filtered, token_ids, rows)

    def choose(self, logits: Tensor, rows: Sequence[SampledRow]) -> list[int]:
        """Do the same without logprobs."""
        return self._choose(logits[:, : self.vocab_size].float(), rows)[1]

    def _choose(self, raw: Tensor, rows: Sequence[SampledRow]) -> tuple[Tensor, list[int]]:
        """Return the logits after the chain, filtered only where logprobs want that, and the tokens."""
        processed = raw
        if any(needs_processing(row) for row in rows):
            is_wanted_raw = any(row.params.logprobs is not None and needs_processing(row) for row in rows)
            processed = raw.clone() if is_wanted_raw else raw
            for row_logits, row in zip(processed, rows, strict=True):
                process_row(row_logits, row, self._apply_bitmask)
        if self._chooser is None:
            slow = [number for number, row in enumerate(rows) if not row.params.is_greedy]
            token_ids: list[int] = processed.argmax(dim=-1).tolist()
        else:  # which way a row goes depends on the row alone
            slow = [number for number, row in enumerate(rows) if _needs_torch(row.params)]
            fast: list[SampledRow | None] = list(rows)
            for number in slow:
                fast[number] = None
            token_ids = self._chooser(processed, fast)
        return _sample_in_torch(processed, rows, slow, token_ids) if slow else processed, token_ids


def broken_rows(logits: Tensor) -> frozenset[int]:
    """Return the numbers of rows with a logit that is NaN or infinitely high, which no sound model has."""
    is_broken = ~(logits < float("inf")).all(dim=-1)
    return frozenset(is_broken.nonzero().flatten().tolist())


def is_simple(row: SampledRow) -> bool:
    """Tell whether a row's logits go straight to a TokenChooser: nobody changes them or reports any."""
    return row.history is None and row.params.is_plain and row.params.logprobs is None


def _needs_torch(params: SamplingParams) -> bool:
    """Tell whether a row asks for what only the plain sampler does."""
    return not params.is_greedy and (params.typical_p < 1.0 or params.processed_logprobs)


def _sample_in_torch(
    processed: Tensor, rows: Sequence[SampledRow], numbers: list[int], token_ids: list[int]
) -> Tensor:
    """Sample the numbered rows into token_ids; return the logits with theirs filtered if asked for."""
    indices = torch.tensor(numbers, device=processed.device)
    chosen = [rows[number] for number in numbers]
    survivors = apply_filters(processed[indices], [row.params for row in chosen])
    drawn = draw(survivors, [noise_key(row.seed, row.choice, row.position) for row in chosen])
    for number, token_id in zip(numbers, drawn.tolist(), strict=True):
        token_ids[number] = token_id
    if any(row.params.processed_logprobs for row in chosen):
        return processed.index_copy(0, indices, survivors)
    return processed


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
    rows = (column("typical_p") < 1.0).nonzero().flatten()  # it sorts whole rows: only those that ask
    if len(rows):  # asked in float32: 1 - 1e-9 is 1 there
        logits = logits.index_copy(0, rows, apply_typical_p(logits[rows], column("typical_p")[rows]))
    return logits


def draw(logits: Tensor, keys: list[NoiseKey]) -> Tensor:
    """Sample a token from each row of [num_rows, vocab_size] with the noise of its key."""
    return gumbel_noise(keys, logits.shape[1], device=logits.device).add_(logits).argmax(dim=-1)


def chosen_logprobs(
    raw: Tensor, processed: Tensor, token_ids: Sequence[int], rows: Sequence[SampledRow]
) -> tuple[TokenLogprobs | None, ...]:
    """Return the logprobs of the chosen tokens, None for rows that want none."""
    results: list[TokenLogprobs | None] = [None] * len(rows)
    for logits, is_processed in ((raw, False), (processed, True)):
        numbers = [
            number
            for number, row in enumerate(rows)
            if row.params.logprobs is not None and row.params.processed_logprobs is is_processed
        ]
        if numbers:
            num_top = [rows[number].params.logprobs or 0 for number in numbers]
            complete = [place for place, number in enumerate(numbers) if rows[number].params.all_logprobs]
            chosen = [token_ids[number] for number in numbers]
            found = token_logprobs(logits[numbers], chosen, num_top, complete)
            for number, logprobs in zip(numbers, found, strict=True):
                results[number] = logprobs
    return tuple(results)
