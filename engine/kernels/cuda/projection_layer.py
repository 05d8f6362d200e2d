"""Projection: a linear layer with what is computed around it, and how the sum over its input is cut."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation

PIECE_MULTIPLE = 64  # of the input columns: no step of a product's loop crosses the end of a piece
_MAX_PIECES = 4
_MIN_PIECE = 256  # input columns, below which a piece's own costs outweigh its work
_WIDE = 4096  # weight rows from which the column tiles alone keep a card busy


@dataclass(frozen=True)
class NormWeights:
    """RMSNorm where `bias` is None, else LayerNorm, over K values."""

    weight: Tensor  # [K]
    bias: Tensor | None  # [K]
    eps: float


@dataclass(frozen=True)
class Projection:
    """y = W norm(x) + bias, then the activation; gated: activation(gate) * up.

    Of a gated layer the first half of the weight's rows (and of the bias) is the gate, the second half up.
    """

    weight: Tensor  # T [out_rows, K], contiguous; out_rows = 2N where gated, else N
    bias: Tensor | None  # T [out_rows]
    norm: NormWeights | None
    activation: Activation | None
    is_gated: bool
    out_dtype: torch.dtype  # T, or float32 for logits

    @property
    def num_columns(self) -> int:
        """Values of a row of the output, N."""
        out_rows: int = self.weight.shape[0]
        return out_rows // 2 if self.is_gated else out_rows

    @property
    def depth(self) -> int:
        """Values of a row of the input, K."""
        depth: int = self.weight.shape[1]
        return depth

    @property
    def cut(self) -> "Cut":
        """How the sum over K is cut."""
        return cut_depth(*self.weight.shape)


class ProjectionUse(NamedTuple):
    """A projection as a model calls it."""

    projection: Projection
    has_residual: bool


@dataclass(frozen=True)
class Cut:
    """Pieces of K that are summed apart, then in ascending order; the last may be shorter."""

    num_pieces: int
    piece_size: int  # a multiple of PIECE_MULTIPLE


def num_pieces(out_rows: int, depth: int) -> int:
    """Return the pieces into which a weight [out_rows, depth] is cut, whatever the number of input rows.

    A narrow layer has few column tiles, and a single row would leave most of a card idle without pieces.
    """
    return cut_depth(out_rows, depth).num_pieces


def cut_depth(out_rows: int, depth: int) -> Cut:
    """Cut the input columns of a weight [out_rows, depth] in equal pieces of whole multiples."""
    wanted = 1 if out_rows > _WIDE else min(_MAX_PIECES, max(1, depth // _MIN_PIECE))
    size = -(-depth // (wanted * PIECE_MULTIPLE)) * PIECE_MULTIPLE
    return Cut(-(-depth // size), size)
