"""AttentionModel: what can say which tokens of a prompt look at which, for people to look at."""

from collections.abc import Sequence
from typing import Protocol

from engine.interface.cancellation import Cancellation

MAX_ATTENTION_TOKENS = 128
"""Of one prompt: what is computed and returned grows with the square of it."""


class AttentionModel(Protocol):
    """The weights a second time, beside those that are served."""

    @property
    def num_layers(self) -> int:
        """Layers that can be asked for, from 0."""

    @property
    def num_heads(self) -> int:
        """Query heads of a layer."""

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take."""

    def attention(self, token_ids: Sequence[int], layer: int, cancellation: Cancellation) -> bytes:
        """Return the attention probabilities of a layer; blocks.

        float32 [num_heads, num_tokens, num_tokens], little-endian: head, query, key; 0 behind the query's own
        position. Raises CancelledError once `cancellation` says so.
        """
