"""InputBuffers: a step's input as tensors that stay where they are, for a captured graph to read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.model.attention_tiles import QuerySpan


class InputTensors(NamedTuple):
    """What a forward pass reads: views of the front of each buffer."""

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens], counted from the start of each request
    slot_mapping: Tensor  # int64 [num_tokens]: where in the KV storage each token goes
    query_starts: Tensor  # int32 [num_spans + 1]: first token of each span, then the number of tokens
    sequence_lengths: Tensor  # int32 [num_spans]: positions that a span's last token sees
    block_tables: Tensor  # int32 [num_spans, max_blocks], block 0 behind the last


class InputBuffers:
    """Room for steps of up to so many tokens, spans and blocks of a span; each fill() overwrites the last."""

    def __init__(self, *, max_tokens: int, max_spans: int, max_blocks: int, device: torch.device) -> None:
        self.max_tokens, self.max_spans, self.max_blocks = max_tokens, max_spans, max_blocks

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._buffers = InputTensors(
            token_ids=zeros(max_tokens, dtype=torch.int64),
            positions=zeros(max_tokens, dtype=torch.int64),
            slot_mapping=zeros(max_tokens, dtype=torch.int64),
            query_starts=zeros(max_spans + 1, dtype=torch.int32),
            sequence_lengths=zeros(max_spans, dtype=torch.int32),
            block_tables=zeros(max_spans, max_blocks, dtype=torch.int32),
        )

    @classmethod
    def sized_for(
        cls, token_ids: Sequence[int], spans: Sequence[QuerySpan], device: torch.device
    ) -> "InputBuffers":
        """Return buffers that hold just this step."""
        max_blocks = max((len(span.block_ids) for span in spans), default=0)
        return cls(max_tokens=len(token_ids), max_spans=len(spans), max_blocks=max_blocks, device=device)

    def fits(self, token_ids: Sequence[int], spans: Sequence[QuerySpan]) -> bool:
        """Tell whether a step has room."""
        return (
            len(token_ids) <= self.max_tokens
            and len(spans) <= self.max_spans
            and all(len(span.block_ids) <= self.max_blocks for span in spans)
        )

    def fill(self, token_ids: Sequence[int], spans: Sequence[QuerySpan], block_size: int) -> InputTensors:
        """Write a step, which must fit, and return it."""
        positions = [np.arange(span.first_position, span.first_position + span.num_tokens) for span in spans]
        slots = [
            _slots(mine, span.block_ids, block_size) for mine, span in zip(positions, spans, strict=True)
        ]
        tables = np.zeros((len(spans), self.max_blocks), dtype=np.int32)
        for table, span in zip(tables, spans, strict=True):
            table[: len(span.block_ids)] = span.block_ids
        starts = [*(span.start for span in spans), len(token_ids)]
        lengths = [span.first_position + span.num_tokens for span in spans]
        numbers = (np.array(one) for one in (token_ids, _join(positions), _join(slots), starts, lengths))
        views = [
            buffer[: len(values)].copy_(torch.from_numpy(values))
            for buffer, values in zip(self._buffers, (*numbers, tables), strict=True)
        ]
        return InputTensors(*views)


def _slots(positions: npt.NDArray[np.int64], block_ids: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    first_block = int(positions[0]) // size
    table = np.array(block_ids[first_block : int(positions[-1]) // size + 1])
    slots: npt.NDArray[np.int64] = table[positions // size - first_block] * size + positions % size
    return slots


def _join(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
