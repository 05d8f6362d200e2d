"""Attention probabilities of one layer, by a dense pass over a whole prompt: for people, not for serving."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.interface.batch import Batch, ScheduledChunk
from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError
from engine.model.decoder import Decoder
from engine.model.model_input import ModelInput, build_model_input

_BLOCK_SIZE = 16  # no block is written; only the tokens and positions of the step are read


class _DenseAttention:
    """Attends as LayerKV does, without a cache, and keeps what each query looked at."""

    def __init__(self) -> None:
        self.probabilities: Tensor | None = None  # [num_heads, num_tokens, num_tokens] of the last layer

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        step: ModelInput,  # noqa: ARG002 - one sequence from its beginning
        *,
        scale: float,
    ) -> Tensor:
        """Return softmax(query keys^T * scale) values, causal: [num_tokens, num_heads * head_dim].

        query [num_tokens, num_heads, head_dim], keys and values [num_tokens, num_kv_heads, head_dim].
        """
        heads_per_kv = query.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(heads_per_kv, dim=1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query * scale, keys).float()
        is_later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        self.probabilities = scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", self.probabilities.to(values.dtype), values).flatten(1)


@torch.inference_mode()
def attention_probabilities(
    model: Decoder, token_ids: Sequence[int], layer: int, cancellation: Cancellation
) -> Tensor:
    """Return what each query of a layer looked at: float32 [num_heads, num_tokens, num_tokens].

    A row holds a query's keys up to its own position, which sum to 1, then zeros. Layers behind the one
    asked for are not computed. Raises CancelledError between two layers once `cancellation` says so.
    """
    block_ids = tuple(range(-(-len(token_ids) // _BLOCK_SIZE)))
    chunk = ScheduledChunk(-1, 0, tuple(token_ids), block_ids)
    step = build_model_input(Batch((chunk,)), block_size=_BLOCK_SIZE, device=torch.device("cpu"))
    dense = _DenseAttention()
    x, rotation = model.embed(step)
    for one in model.layers[: layer + 1]:
        if cancellation.is_cancelled:
            raise CancelledError("the attention was not computed to its end")
        x = one(x, rotation, dense, step)
    assert dense.probabilities is not None
    return dense.probabilities
