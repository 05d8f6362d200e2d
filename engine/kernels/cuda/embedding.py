"""The first launch of a step: the embeddings of its tokens."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda.dtype_names import TRITON_NAMES
from engine.kernels.cuda.variants import Variant

_MAX_COLUMNS = 1024  # that a program copies
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the same rounding from every compiler


def embed(
    token_ids: Tensor,
    positions: Tensor,
    embedding: Tensor,
    position_embedding: Tensor | None,
    out: Tensor,
    num_tokens: int,
    *,
    dependent: bool = False,
) -> None:
    """Write the embedding of each token, plus that of its position where the model has one.

    token_ids, positions int32, of which the first `num_tokens` count; embedding T [vocab_size, hidden],
    position_embedding T [max_positions, hidden]; out T [at least num_tokens, hidden]. The sum is rounded
    once. `dependent`: start before the launch before has ended (PDL; from compute capability 9.0).
    """
    hidden = embedding.shape[1]
    columns = _columns(hidden)
    _embed[(num_tokens, triton.cdiv(hidden, columns))](
        token_ids,
        positions,
        embedding,
        embedding if position_embedding is None else position_embedding,
        out,
        hidden,
        HAS_POSITIONS=position_embedding is not None,
        BLOCK=columns,
        PDL=dependent,
        **_OPTIONS,
        **({"launch_pdl": True} if dependent else {}),
    )


def variants(hidden: int, dtype: torch.dtype, *, has_positions: bool) -> Iterator[Variant]:
    """Yield what embed() launches for a model."""
    pointer = f"*{TRITON_NAMES[dtype]}"
    signature = {
        "token_ids": "*i32",
        "positions": "*i32",
        "embedding": pointer,
        "position_embedding": pointer,
        "out": pointer,
        "hidden": "i32",
    }
    divisible = frozenset(name for name in signature if name != "hidden" or hidden % 16 == 0)
    constants = {"HAS_POSITIONS": has_positions, "BLOCK": _columns(hidden), "PDL": False}
    yield Variant(_embed, signature, constants, _OPTIONS, divisible)


def _columns(hidden: int) -> int:
    return min(int(triton.next_power_of_2(hidden)), _MAX_COLUMNS)


@triton.jit
def _embed(
    token_ids,
    positions,
    embedding,
    position_embedding,
    out,
    hidden,
    HAS_POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    number = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < hidden
    token = tl.load(token_ids + number).to(tl.int64)  # times `hidden` it may pass 2**31
    embedded = tl.load(embedding + token * hidden + column, mask=is_column, other=0.0)
    if HAS_POSITIONS:
        position = tl.load(positions + number).to(tl.int64)
        shift = tl.load(position_embedding + position * hidden + column, mask=is_column, other=0.0)
        embedded = (embedded.to(tl.float32) + shift.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + number.to(tl.int64) * hidden + column, embedded, mask=is_column)
