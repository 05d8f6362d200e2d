"""Pooling: how the hidden states of a text become one vector, its embedding."""

from enum import Enum

FRACTION_BITS = 24
"""Of a hidden state's element as a fixed-point number: as fine as a float32 of 1."""


class Pooling(str, Enum):
    """Which of a text's hidden states, behind the model's last norm, are averaged."""

    LAST = "last"  # the last token's alone
    MEAN = "mean"  # every token's
