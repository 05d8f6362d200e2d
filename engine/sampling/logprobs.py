"""Logprobs: what the distribution says of tokens, chosen or given."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from engine.interface.outputs import TokenLogprobs


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int], complete_rows: Collection[int] = ()
) -> list[TokenLogprobs]:
    """Return the logprob of each row's token and of its `num_top` likeliest tokens.

    logits [num_rows, vocab_size]; natural logarithms. Tokens that cannot come (-inf) are left out of the
    top, so that no infinity leaves the engine. Each row is normalised alone. The rows numbered in
    `complete_rows` come with the logprobs of all tokens.
    """
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1))[:, 0].tolist()
    most = max(num_top, default=0)
    values, ids = logprobs.topk(min(most, logits.shape[1]), dim=-1) if most else (logprobs[:, :0],) * 2
    return [
        TokenLogprobs(
            token_id,
            logprob,
            _top(row_ids[:count], row_values[:count]),
            _to_bytes(logprobs[row]) if row in complete_rows else None,
        )
        for row, (token_id, logprob, row_ids, row_values, count) in enumerate(
            zip(token_ids, chosen, ids.tolist(), values.tolist(), num_top, strict=True)
        )
    ]


def _to_bytes(logprobs: Tensor) -> bytes:
    return logprobs.cpu().numpy().astype("<f4").tobytes()


def _top(token_ids: Sequence[int], logprobs: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((t, p) for t, p in zip(token_ids, logprobs, strict=True) if p != float("-inf"))
