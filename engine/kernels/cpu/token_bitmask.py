"""A grammar's bitmask over a row of logits: a few microseconds in the kernels, fifty in torch."""

from torch import Tensor

from engine.kernels.cpu.library import require_library

_NEVER = float("-inf")


def apply_token_bitmask(logits: Tensor, token_bitmask: bytes) -> None:
    """Do what its twin in engine/sampling/token_bitmask.py does, for a row that lies in one piece."""
    assert logits.is_contiguous(), "a row of logits must lie in one piece"
    num_masked = min(len(logits), 8 * len(token_bitmask))
    require_library().draftline_mask(logits.data_ptr(), token_bitmask, num_masked)
    logits[num_masked:] = _NEVER
