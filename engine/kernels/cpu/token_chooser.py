"""FusedTokenChooser: rows of logits to tokens in the CPU kernels; the twin is engine/sampling in torch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.kernels.cpu.library import KernelContext
from engine.sampled_row import SampledRow
from engine.sampling.noise import noise_key

_ROW_SAMPLING = np.dtype(
    [
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("top_k", np.int32),
        ("noise_low", np.uint32),
        ("noise_high", np.uint32),
    ]
)
"""struct RowSampling."""

_GREEDY = (0.0, 1.0, 0.0, 0, 0, 0)
_MASK_32 = 2**32 - 1


class FusedTokenChooser:
    """Temperature, top-k, top-p, min-p and the position-keyed noise, row by row."""

    def __init__(self, context: KernelContext) -> None:
        self._context = context

    def __call__(self, logits: Tensor, rows: Sequence[SampledRow | None]) -> list[int]:
        """Return a token for each row of float32 [num_rows, vocab_size]; the likeliest where it is None."""
        assert logits.stride(1) == 1, "a row of logits must lie in one piece"
        sampling = row_sampling_array([(row, 0) for row in rows])
        tokens = np.empty(len(rows), dtype=np.int64)
        self._context.library.draftline_sample(
            self._context.handle,
            logits.data_ptr(),
            logits.stride(0),
            len(rows),
            logits.shape[1],
            sampling.ctypes.data,
            tokens.ctypes.data,
        )
        token_ids: list[int] = tokens.tolist()
        return token_ids


def row_sampling_array(rows: Sequence[tuple[SampledRow | None, int]]) -> npt.NDArray[np.void]:
    """Return struct RowSampling for pairs of a row and how many tokens come before its noise's position."""
    return np.array([_row_sampling(row, offset) for row, offset in rows], dtype=_ROW_SAMPLING)


def _row_sampling(row: SampledRow | None, offset: int) -> tuple[float, float, float, int, int, int]:
    if row is None or row.params.is_greedy:
        return _GREEDY
    params = row.params
    key = noise_key(row.seed, row.choice, row.num_tokens + offset)
    top_k = min(max(params.top_k, 0), 2**31 - 1)
    return params.temperature, params.top_p, params.min_p, top_k, key.low & _MASK_32, key.high & _MASK_32
