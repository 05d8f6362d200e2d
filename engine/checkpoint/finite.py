"""Are a tensor's values finite? Read from the bytes as stored: of quantised blocks only their scales.

One NaN among the weights makes every answer an error, or worse: nothing that comes of it can be trusted. The
whole check reads what loading reads anyway.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gguf import quants

from engine.checkpoint.checkpoint import StoredTensor
from engine.checkpoint.stored_tensor import PLAIN_FORMATS, GGUFTensor, TorchTensor, describe
from engine.interface.errors import CheckpointError

_SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""Where the float16 scales and minima stand in a block; the rest of it are integers."""


class _Bits(NamedTuple):
    """A float's bits as an integer: without its sign, infinity and every NaN are `infinity` or more."""

    dtype: type[np.unsignedinteger[Any]]
    magnitude: int
    infinity: int


_PLAIN = {
    "F32": _Bits(np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F16": _Bits(np.uint16, 0x7FFF, 0x7C00),
    "BF16": _Bits(np.uint16, 0x7FFF, 0x7F80),
}
_PIECE = 1 << 16  # values


def check_finite(name: str, tensor: StoredTensor) -> None:
    """Raise CheckpointError for a tensor of a file with a value that is NaN or infinite."""
    if isinstance(tensor, GGUFTensor):
        is_finite = _is_gguf_finite(tensor)
    elif isinstance(tensor, TorchTensor):
        is_finite = _is_torch_finite(tensor.mapped())
    else:
        return  # made by this program
    if not is_finite:
        raise not_finite_error(name, tensor)


def not_finite_error(name: str, tensor: StoredTensor) -> CheckpointError:
    """Return the error for a tensor with a value that is NaN or infinite."""
    return CheckpointError(
        f"{describe(name, tensor)} holds NaN or infinity: the file is damaged, or its training diverged"
    )


def _is_gguf_finite(tensor: GGUFTensor) -> bool:
    if tensor.format in _PLAIN:
        return _are_finite(tensor.stored_rows, tensor.format)
    offsets = _SCALES.get(tensor.format)
    if offsets is None:  # rare formats whose scales are put together of several places
        return bool(torch.isfinite(tensor.dequantize()).all())
    blocks = tensor.stored_rows.reshape(-1, getattr(quants, tensor.format).type_size)
    return all(_are_finite(np.ascontiguousarray(blocks[:, offset : offset + 2]), "F16") for offset in offsets)


def _is_torch_finite(values: torch.Tensor) -> bool:
    name = next((name for name, dtype in PLAIN_FORMATS.items() if dtype is values.dtype), None)
    if name is None:
        return bool(torch.isfinite(values).all())
    ordered = values.t() if values.dim() == 2 and values.t().is_contiguous() else values
    return _are_finite(ordered.contiguous().view(-1).view(torch.uint8).numpy(), name)


def _are_finite(values: npt.NDArray[np.uint8], kind: str) -> bool:
    """Compare bits, a cache-sized piece at a time: ten times as fast as asking for each value."""
    bits = values.reshape(-1).view(_PLAIN[kind].dtype)
    piece = np.empty(_PIECE, dtype=bits.dtype)
    for start in range(0, len(bits), _PIECE):
        part = bits[start : start + _PIECE]
        magnitudes = np.bitwise_and(part, _PLAIN[kind].magnitude, out=piece[: len(part)])
        if magnitudes.max() >= _PLAIN[kind].infinity:
            return False
    return True
