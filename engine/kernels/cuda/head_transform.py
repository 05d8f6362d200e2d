"""What is done to each head's queries and keys before attention: a norm, then a rotation."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RotaryTables:
    """Cosines and sines of rotary position embedding (arXiv 2104.09864), float32 [max_positions, head_dim].

    As engine.model.rope.Rope makes them: the first half of `signed_sin` is negated.
    """

    cos: Tensor
    signed_sin: Tensor


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of each head's queries and keys (arXiv 2302.05442): weights T [head_dim]."""

    query_weight: Tensor
    key_weight: Tensor
    eps: float
