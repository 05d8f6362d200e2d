"""FusedDraftChain: a draft of several tokens in one call of the CPU kernels, where no processor is needed."""

import ctypes
from collections.abc import Sequence

from engine.interface.sampled_row import SampledRow
from engine.kernels.cpu.fused_decoder import FusedDecoder
from engine.kernels.cpu.library import KernelContext
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.kernels.cpu.token_chooser import row_sampling
from engine.model.model_input import ModelInput


class FusedDraftChain:
    """Runs a draft model over spans, then `num_steps - 1` times over the token it chose for each."""

    def __init__(
        self, context: KernelContext, model: FusedDecoder, kv_storage: TiledKVStorage, *, vocab_size: int
    ) -> None:
        self._context, self._model, self._kv_storage = context, model, kv_storage
        self._vocab_size = vocab_size

    def __call__(
        self, model_input: ModelInput, rows: Sequence[SampledRow], num_steps: int
    ) -> list[list[int]]:
        """Return num_steps tokens for each of `rows`, whose spans stand first; their slots must be there.

        The noise is that of the positions after each row, as if its tokens had been appended one by one.
        """
        arrays = self._model.arrays(model_input)
        token_ids = (ctypes.c_int64 * (num_steps * len(rows)))()
        self._context.library.draftline_draft(
            self._context.handle,
            self._model.struct,
            self._kv_storage.tiles,
            *arrays.arguments,
            len(rows),
            num_steps,
            b"".join([row_sampling(row, step) for step in range(num_steps) for row in rows]),
            self._vocab_size,
            token_ids,
        )
        return [token_ids[row :: len(rows)] for row in range(len(rows))]
