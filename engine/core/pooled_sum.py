"""PooledSum: the hidden states of a request's prompt, added up chunk by chunk."""

from dataclasses import dataclass

import numpy as np

from engine.interface.pooling import FRACTION_BITS


@dataclass(slots=True)
class PooledSum:
    """A sum in fixed point (engine/model/pooling.py); `next_position` is the next one that counts."""

    next_position: int
    num_tokens: int = 0
    total: bytes = b""  # int64 [hidden_size], little-endian

    def add(self, part: bytes, *, end: int) -> None:
        """Add the sum of the positions from `next_position` to `end`."""
        if self.total:
            both = np.frombuffer(self.total, "<i8") + np.frombuffer(part, "<i8")
            part = both.tobytes()
        self.total = part
        self.num_tokens += end - self.next_position
        self.next_position = end

    def mean(self) -> bytes:
        """Return the average, float32 [hidden_size], little-endian."""
        total = np.frombuffer(self.total, "<i8")
        return (total / (self.num_tokens * 2.0**FRACTION_BITS)).astype("<f4").tobytes()
