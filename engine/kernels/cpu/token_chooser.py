"""FusedTokenChooser: rows of logits to tokens in the CPU kernels; the twin is engine/sampling in torch."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from engine.interface.sampled_row import SampledRow
from engine.kernels.cpu.library import ROW_SAMPLING, KernelContext
from engine.sampling.noise import noise_key

_GREEDY = ROW_SAMPLING.pack(0.0, 1.0, 0.0, 0, 0, 0)
_MASK_32 = 2**32 - 1


class FusedTokenChooser:
    """Temperature, top-k, top-p, min-p and the position-keyed noise, row by row."""

    def __init__(self, context: KernelContext) -> None:
        self._context = context

    def __call__(self, logits: Tensor, rows: Sequence[SampledRow | None]) -> list[int]:
        """Return a token for each row of float32 [num_rows, vocab_size]; the likeliest where it is None."""
        assert logits.stride(1) == 1, "a row of logits must lie in one piece"
        token_ids = (ctypes.c_int64 * len(rows))()
        self._context.library.draftline_sample(
            self._context.handle,
            logits.data_ptr(),
            logits.stride(0),
            len(rows),
            logits.shape[1],
            b"".join([row_sampling(row) for row in rows]),
            token_ids,
            None,  # whoever has processed the logits has looked at them before
        )
        return list(token_ids)


def row_sampling(row: SampledRow | None, offset: int = 0) -> bytes:
    """Return struct RowSampling of a row, `offset` positions on; of a greedy one for None."""
    if row is None or row.params.is_greedy:
        return _GREEDY
    params = row.params
    key = noise_key(row.seed, row.choice, row.position + offset)
    top_k = min(max(params.top_k, 0), 2**31 - 1)
    return ROW_SAMPLING.pack(
        params.temperature, params.top_p, params.min_p, top_k, key.low & _MASK_32, key.high & _MASK_32
    )
