"""RequestTable: the host's copy of the table of requests on the device, and what of it must be sent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.interface.sampled_row import SampledRow
from engine.kernels.cuda.request_state import (
    BLOCK_TABLE,
    LAST_TOKEN,
    MIN_P,
    NEXT_POSITION,
    NOISE_HIGH,
    NOISE_LOW,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPICAL_P,
)
from engine.sampling.noise import noise_base

Numbers = npt.NDArray[np.int32]

_UNKNOWN = -1  # position of a request of which the device must be told token and position

_PARAMETERS = (TEMPERATURE, TOP_K, TOP_P, MIN_P, TYPICAL_P, NOISE_LOW, NOISE_HIGH)


class Updates(NamedTuple):
    """Numbers of the table that change: where, counted over all of it, and to what."""

    offsets: Numbers
    values: Numbers


NO_UPDATES = Updates(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))


class RequestTable:
    """Which row of the table a request has, and what stands in it on the device.

    A row is kept until another request needs it, the longest unused first: a batch says everything by value,
    so that a request whose row was taken gets another and is sent anew.
    """

    def __init__(self, *, max_requests: int, width: int) -> None:
        self.null_request = max_requests
        self._width = width
        self._table = np.zeros((max_requests, width), dtype=np.int32)
        self._flat = self._table.reshape(-1)
        self._index_of: dict[int, int] = {}  # by request id, the longest unused first
        self._free = list(range(max_requests - 1, -1, -1))
        self._num_blocks = np.zeros(max_requests, dtype=np.int64)
        self._block_ids: list[tuple[int, ...] | None] = [None] * max_requests  # as sent last
        self._rows: list[SampledRow | None] = [None] * max_requests  # whose parameters were sent last
        self._positions = np.full(max_requests, _UNKNOWN, dtype=np.int64)
        self._offsets: list[int] = []
        self._values: list[int] = []

    def place(self, request_ids: Sequence[int]) -> list[int]:
        """Return the index of each request; they are different ones, no more than the table has rows."""
        known = self._index_of
        places = [known.pop(request_id, -1) for request_id in request_ids]  # pop: they are used last now
        for number, place in enumerate(places):
            if place < 0:
                places[number] = self._take()
        known.update(zip(request_ids, places, strict=True))
        return places

    def _take(self) -> int:
        if not self._free:
            longest_unused = next(iter(self._index_of))
            self._free.append(self._index_of.pop(longest_unused))
        index = self._free.pop()
        self._block_ids[index] = self._rows[index] = None
        self._positions[index] = _UNKNOWN
        return index

    def set_blocks(self, index: int, block_ids: tuple[int, ...]) -> None:
        """Give a request this block table."""
        if self._block_ids[index] is block_ids:  # a request's tuple is another when its blocks are
            return
        self._block_ids[index] = block_ids
        self._num_blocks[index] = len(block_ids)
        first = index * self._width + BLOCK_TABLE
        wanted = np.array(block_ids, dtype=np.int32)
        changed = np.flatnonzero(self._flat[first : first + len(wanted)] != wanted)
        self._write((first + changed).tolist(), wanted[changed].tolist())

    def append_block(self, index: int, block_id: int) -> None:
        """Put one more block behind a request's."""
        offset = index * self._width + BLOCK_TABLE + int(self._num_blocks[index])
        self._num_blocks[index] += 1
        self._block_ids[index] = None  # compared by value when the next tuple comes
        self._write([offset], [block_id])

    def set_parameters(self, index: int, row: SampledRow) -> None:
        """Let a request's tokens be chosen as this row's."""
        sent = self._rows[index]
        if sent is not None and sent.params is row.params and sent[1:3] == row[1:3]:
            return
        self._rows[index] = row
        first = index * self._width
        self._write_changed([first + column for column in _PARAMETERS], _parameters(row))

    def set_last_token(self, index: int, token_id: int, position: int) -> None:
        """Make sure that the request's next token is this one, at this position."""
        if self._positions[index] == position:
            return  # the device chose it itself
        first = index * self._width
        self._write([first + LAST_TOKEN, first + NEXT_POSITION], [token_id, position])
        self._positions[index] = position

    def advance(self, index: int, position: int) -> None:
        """Note that a step chooses the request's token at this position."""
        self._positions[index] = position

    def advance_by_one(self, indices: npt.NDArray[np.int64]) -> None:
        """Note that a step chooses the next token of each request."""
        self._positions[indices] += 1

    def forget_last_token(self, index: int) -> None:
        """Have the request's next token sent: the device may have chosen another than the host."""
        self._positions[index] = _UNKNOWN

    def take_updates(self) -> Updates:
        """Return what the device must be told, and count it as told."""
        updates = Updates(np.array(self._offsets, dtype=np.int32), np.array(self._values, dtype=np.int32))
        self._offsets, self._values = [], []
        return updates

    def _write_changed(self, offsets: Sequence[int], values: Sequence[int]) -> None:
        pairs = [(o, v) for o, v in zip(offsets, values, strict=True) if self._flat[o] != v]
        self._write([offset for offset, _ in pairs], [value for _, value in pairs])

    def _write(self, offsets: list[int], values: list[int]) -> None:
        self._flat[offsets] = values
        self._offsets += offsets
        self._values += values


def _parameters(row: SampledRow) -> list[int]:
    """Return the columns of _PARAMETERS; filters of a greedy row are off, for they change nothing."""
    params = row.params
    low, high = noise_base(row.seed, row.choice)
    if params.is_greedy:
        return [0, 0, _bits(1.0), 0, _bits(1.0), low, high]
    top_k = min(max(params.top_k, 0), 2**31 - 1)
    shares = (params.top_p, params.min_p, params.typical_p)
    return [_bits(params.temperature), top_k, *map(_bits, shares), low, high]


def _bits(value: float) -> int:
    """Return the bits of a float32 as a signed number."""
    return int(np.float32(value).view(np.int32))
