"""From the chunks of a step to the numbers that the device is sent: one array, one copy."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.execution.cuda.request_table import RequestTable, Updates
from engine.execution.cuda.shapes import ShapeRules
from engine.interface.batch import PENDING_TOKEN
from engine.interface.sampled_row import SampledRow
from engine.kernels.cuda.step_buffers import (
    INBOX_HAS_REQUESTS,
    INBOX_HEADER,
    INBOX_UPDATES,
    INBOX_UPDATES_START,
    StepShape,
)

Numbers = npt.NDArray[np.int32]


class Span(NamedTuple):
    """Consecutive tokens of one request that run in a step; its rows belong to the last of them."""

    request_id: int
    first_position: int
    token_ids: Sequence[int]
    block_ids: tuple[int, ...]
    rows: Sequence[SampledRow]


class PackedStep(NamedTuple):
    """A step as the device is sent it."""

    shape: StepShape
    is_decode: bool  # every request runs one token and has one row: the device lays it out by itself
    indices: list[int]  # of the requests, in the order of the spans
    arrays: Numbers  # what follows the inbox's header, up to the updates


def pack(spans: Sequence[Span], table: RequestTable, rules: ShapeRules) -> PackedStep:
    """Place the requests of a step and lay out its numbers; what else is new goes into the table."""
    indices = table.place([span.request_id for span in spans])
    is_decode = all(len(span.token_ids) == 1 == len(span.rows) for span in spans)
    for index, span in zip(indices, spans, strict=True):
        table.set_blocks(index, span.block_ids)
        if span.rows:
            table.set_parameters(index, span.rows[0])
        if is_decode and span.token_ids[0] != PENDING_TOKEN:
            table.set_last_token(index, span.token_ids[0], span.first_position)
    step = (
        decode_step(indices, table.null_request, rules)
        if is_decode
        else _pack_mixed(spans, indices, table, rules)
    )
    _note_rows(spans, indices, table)
    return step


def decode_step(indices: list[int], null_request: int, rules: ShapeRules) -> PackedStep:
    """Return the step in which each of these requests runs the token that the device knows as its next."""
    shape = rules.decode(len(indices))
    requests = np.full(shape.num_rows, null_request, dtype=np.int32)
    requests[: len(indices)] = indices
    return PackedStep(shape, True, indices, requests)


def null_step(shape: StepShape, null_request: int) -> PackedStep:
    """Return a step of nothing but padding."""
    if shape.tile_tokens == 1:
        return PackedStep(shape, True, [], np.full(shape.num_rows, null_request, dtype=np.int32))
    zeros, nulls = (np.full(shape.num_tokens, value, dtype=np.int32) for value in (0, null_request))
    tiles = (zeros[:1].repeat(shape.num_tiles), np.ones(shape.num_tiles, dtype=np.int32))
    row_zeros = zeros[:1].repeat(shape.num_rows)
    rows = (row_zeros, nulls[:1].repeat(shape.num_rows), row_zeros)
    return PackedStep(shape, False, [], np.concatenate([zeros, zeros, nulls, *tiles, *rows]))


def fill_inbox(inbox: Numbers, step: PackedStep | None, updates: Updates) -> int:
    """Write a step, or updates alone, into an inbox; returns how many numbers of it are to be sent."""
    num_arrays = 0 if step is None else len(step.arrays)
    start, count = INBOX_HEADER + num_arrays, len(updates.offsets)
    inbox[INBOX_UPDATES] = count
    inbox[INBOX_HAS_REQUESTS] = step is not None and step.is_decode
    inbox[INBOX_UPDATES_START] = start
    if step is not None:
        inbox[INBOX_HEADER:start] = step.arrays
    inbox[start : start + count] = updates.offsets
    inbox[start + count : start + 2 * count] = updates.values
    return start + 2 * count


def _pack_mixed(
    spans: Sequence[Span], indices: list[int], table: RequestTable, rules: ShapeRules
) -> PackedStep:
    """Cut the spans into tiles; padding is a token of the null request that tiles and rows point to."""
    counts = [len(span.token_ids) for span in spans]
    starts = np.cumsum([0, *counts[:-1]])
    num_tokens, width = sum(counts), rules.tile_tokens(max(counts))
    tiles = [
        (start + first, min(width, count - first))
        for start, count in zip(starts.tolist(), counts, strict=True)
        for first in range(0, count, width)
    ]
    rows = [row for span in spans for row in span.rows]
    shape = rules.of(num_tokens, max(counts), len(tiles), len(rows))
    token_ids = np.zeros(shape.num_tokens, dtype=np.int32)
    token_ids[:num_tokens] = list(chain.from_iterable(span.token_ids for span in spans))
    positions = np.zeros(shape.num_tokens, dtype=np.int32)
    firsts = np.array([span.first_position for span in spans])
    positions[:num_tokens] = np.arange(num_tokens) + np.repeat(firsts - starts, counts)
    arrays = (
        token_ids,
        positions,
        _padded(np.repeat(indices, counts), shape.num_tokens, table.null_request),
        _padded([start for start, _ in tiles], shape.num_tiles, num_tokens),
        _padded([length for _, length in tiles], shape.num_tiles, 1),
        _padded(_row_tokens(spans, starts.tolist()), shape.num_rows, num_tokens),
        _padded(_row_requests(spans, indices), shape.num_rows, table.null_request),
        _padded([row.position for row in rows], shape.num_rows, 0),
    )
    return PackedStep(shape, False, indices, np.concatenate(arrays))


def _row_tokens(spans: Sequence[Span], starts: Sequence[int]) -> list[int]:
    """Return the token of each row: the last ones of its span."""
    ends = [start + len(span.token_ids) for start, span in zip(starts, spans, strict=True)]
    ranges = [range(end - len(span.rows), end) for end, span in zip(ends, spans, strict=True)]
    return list(chain.from_iterable(ranges))


def _row_requests(spans: Sequence[Span], indices: Sequence[int]) -> list[int]:
    pairs = zip(indices, spans, strict=True)
    return list(chain.from_iterable(repeat(index, len(span.rows)) for index, span in pairs))


def _padded(values: "Sequence[int] | npt.NDArray[np.int64]", size: int, padding: int) -> Numbers:
    padded = np.full(size, padding, dtype=np.int32)
    padded[: len(values)] = values
    return padded


def _note_rows(spans: Sequence[Span], indices: Sequence[int], table: RequestTable) -> None:
    """Note which tokens the device knows after the step: that of a request's only row."""
    for index, span in zip(indices, spans, strict=True):
        if len(span.rows) == 1:
            table.advance(index, span.rows[0].position)
        else:
            table.forget_last_token(index)
