"""What a model does inside: its whole distribution of the next token, and where it looks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from draftline_client.types._record import Delivered
from draftline_client.types.cache import PromptToken
from draftline_client.types.chat import TopLogprob
from draftline_client.types.usage import Usage


@dataclass(frozen=True, kw_only=True)
class LikelyToken(TopLogprob):
    """One of the likeliest tokens of a distribution."""

    token_id: int  # in the vocabulary


@dataclass(frozen=True, kw_only=True)
class Distribution(Delivered):
    """The reply of `distribution`: how likely each token of the vocabulary is to come next.

    This is what the model itself says, before temperature, penalties and filters.
    """

    model: str  # whose distribution it is
    vocab_size: int  # of logprobs
    logprobs: Sequence[float] = field(hash=False, repr=False)  # by token id; float32, an `array.array`
    usage: Usage  # of the prompt
    top_logprobs: tuple[LikelyToken, ...] = ()  # as many as were asked for, likeliest first

    def top(self, count: int) -> tuple[tuple[int, float], ...]:
        """Return the likeliest tokens as (token id, logprob), likeliest first; equal ones by their id."""
        best = heapq.nlargest(count, ((logprob, -i) for i, logprob in enumerate(self.logprobs)))
        return tuple((-i, logprob) for logprob, i in best)


@dataclass(frozen=True, kw_only=True)
class Attention(Delivered):
    """The reply of `attention`: how much each position of a prompt draws from those before it."""

    model: str  # whose attention it is
    num_layers: int  # of the model
    num_heads: int  # of a layer
    layer: int  # that was asked for, counted from 0
    tokens: tuple[PromptToken, ...]  # of the prompt
    attention: tuple[tuple[tuple[float, ...], ...], ...] = field(
        repr=False
    )  # [head][query][key]; keys go up to the query's own position, and add up to 1
