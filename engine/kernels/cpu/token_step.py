"""FusedTokenStep: from tokens to tokens in one call of the CPU kernels; logits stay inside."""

import ctypes
from collections.abc import Sequence

from engine.kernels.cpu.fused_decoder import FusedDecoder
from engine.kernels.cpu.library import KernelContext
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.kernels.cpu.token_chooser import row_sampling
from engine.model_input import ModelInput
from engine.sampled_row import SampledRow


class FusedTokenStep:
    """The model, its head and the choice of tokens, for rows whose logits nobody else wants to see."""

    def __init__(
        self, context: KernelContext, model: FusedDecoder, kv_storage: TiledKVStorage, *, vocab_size: int
    ) -> None:
        self._context, self._model, self._kv_storage = context, model, kv_storage
        self._vocab_size = vocab_size

    def __call__(
        self, model_input: ModelInput, rows: Sequence[SampledRow]
    ) -> tuple[list[int], frozenset[int]]:
        """Return a token for each of `rows`, which belong to model_input.logits_rows in order, and faults.

        Faults are the tokens of the step whose keys, values or logits are not finite.
        """
        arrays, count = self._model.arrays(model_input), len(rows)
        faults = (ctypes.c_uint8 * arrays.num_tokens)()
        token_ids = (ctypes.c_int64 * count)()
        self._context.library.draftline_step(
            self._context.handle,
            self._model.struct,
            self._kv_storage.tiles,
            *arrays.arguments,
            (ctypes.c_int32 * count)(*model_input.logits_rows),
            count,
            b"".join([row_sampling(row) for row in rows]),
            self._vocab_size,
            token_ids,
            faults,
        )
        return list(token_ids), _marked(faults)


def _marked(faults: "ctypes.Array[ctypes.c_uint8]") -> frozenset[int]:
    """Return the numbers of the rows that are marked, of which there are none in a sound model."""
    content = bytes(faults)
    if content.count(0) == len(content):
        return frozenset()
    return frozenset(row for row, is_faulty in enumerate(content) if is_faulty)
