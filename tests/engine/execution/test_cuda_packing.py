"""What the device is sent: the table of requests as the host knows it, and the layout of a step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.execution.cuda.packing import Span, fill_inbox, pack
from engine.execution.cuda.request_table import RequestTable
from engine.execution.cuda.shapes import ShapeRules, is_worth_capturing, pad, pad_tokens
from engine.interface.batch import PENDING_TOKEN
from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda.request_state import BLOCK_TABLE, LAST_TOKEN, NEXT_POSITION, TEMPERATURE
from engine.kernels.cuda.step_buffers import INBOX_HEADER, StepShape

PARAMS = SamplingParams(temperature=0.5, seed=3)
WIDTH = BLOCK_TABLE + 8


class Mirror:
    """A table that takes updates as the device does."""

    def __init__(self, table, max_requests):
        self.table, self.numbers = table, np.zeros((max_requests + 1) * WIDTH, dtype=np.int32)
        self.sent = 0

    def update(self):
        updates = self.table.take_updates()
        assert len(set(updates.offsets.tolist())) == len(updates.offsets), "written at once, in no order"
        self.numbers[updates.offsets] = updates.values
        self.sent = len(updates.offsets)

    def row(self, index):
        return self.numbers[index * WIDTH : (index + 1) * WIDTH]


def new_mirror(max_requests=4):
    return Mirror(RequestTable(max_requests=max_requests, width=WIDTH), max_requests)


def row(position, params=PARAMS, seed=3):
    return SampledRow(params, seed, 0, position)


def decode_span(request_id, position, token=PENDING_TOKEN, blocks=(5, 6)):
    return Span(request_id, position, [token], blocks, [row(position + 1)])


RULES = ShapeRules(max_tokens=64, max_requests=4, max_rows=4, max_tile_tokens=16)


def test_a_request_is_sent_once_and_then_known():
    mirror = new_mirror()
    blocks = (5, 6)
    step = pack([decode_span(10, 20, token=7, blocks=blocks)], mirror.table, RULES)
    mirror.update()
    known = mirror.row(step.indices[0])
    assert known[[LAST_TOKEN, NEXT_POSITION]].tolist() == [7, 20]
    assert known[TEMPERATURE].view(np.float32) == np.float32(0.5)
    assert known[BLOCK_TABLE : BLOCK_TABLE + 2].tolist() == [5, 6]
    pack([decode_span(10, 21, blocks=blocks)], mirror.table, RULES)
    mirror.update()
    assert mirror.sent == 0, "the device has chosen the token itself"
    longer = (5, 6, 9)
    pack([decode_span(10, 22, token=1, blocks=longer)], mirror.table, RULES)
    mirror.update()
    assert mirror.sent == 1, "one more block; the token is the one that the device chose"
    assert mirror.row(step.indices[0])[BLOCK_TABLE + 2] == 9


def test_a_token_at_another_position_than_the_devices_is_sent():
    mirror = new_mirror()
    [index] = pack([decode_span(10, 20, token=7)], mirror.table, RULES).indices
    mirror.update()
    pack([decode_span(10, 12, token=8)], mirror.table, RULES)  # it was preempted, and reads its last token
    mirror.update()
    assert mirror.row(index)[[LAST_TOKEN, NEXT_POSITION]].tolist() == [8, 12]


def test_the_longest_unused_row_is_taken_and_its_request_sent_anew():
    mirror = new_mirror(max_requests=2)
    for request_id in (1, 2):
        pack([decode_span(request_id, 5, token=request_id)], mirror.table, RULES)
    pack([decode_span(1, 6)], mirror.table, RULES)
    mirror.update()
    step = pack([decode_span(1, 7), decode_span(3, 8, token=30, blocks=(1,))], mirror.table, RULES)
    mirror.update()
    assert mirror.row(step.indices[1])[[LAST_TOKEN, NEXT_POSITION]].tolist() == [30, 8]
    step = pack([decode_span(2, 6, token=22)], mirror.table, RULES)
    mirror.update()
    assert mirror.row(step.indices[0])[[LAST_TOKEN, NEXT_POSITION, BLOCK_TABLE]].tolist() == [22, 6, 5]


def test_blocks_that_others_had_are_compared_by_value():
    mirror = new_mirror()
    [index] = pack([decode_span(1, 5, blocks=(1, 2, 3))], mirror.table, RULES).indices
    mirror.update()
    pack([decode_span(1, 6, blocks=(1, 4, 3))], mirror.table, RULES)
    mirror.update()
    assert mirror.sent == 1
    mirror.table.append_block(index, 8)
    mirror.update()
    assert mirror.row(index)[BLOCK_TABLE : BLOCK_TABLE + 4].tolist() == [1, 4, 3, 8]
    pack([decode_span(1, 7, blocks=(1, 4, 3, 8))], mirror.table, RULES)
    mirror.update()
    assert mirror.sent == 0


def test_parameters_of_another_seed_or_choice_are_sent():
    mirror = new_mirror()
    pack([decode_span(1, 5)], mirror.table, RULES)
    mirror.update()
    pack([Span(1, 6, [PENDING_TOKEN], (5, 6), [row(7, seed=4)])], mirror.table, RULES)
    mirror.update()
    assert mirror.sent == 2, "both halves of the noise's key"


def unpack(step):
    """The arrays of a step, by the order that begin_step() takes them in."""
    shape, start, found = step.shape, 0, []
    sizes = [shape.num_tokens] * 3 + [shape.num_tiles] * 2 + [shape.num_rows] * 3
    for size in sizes:
        found.append(step.arrays[start : start + size].tolist())
        start += size
    assert start == len(step.arrays)
    return found


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=4),
    st.sampled_from([2, 4, 16]),
)
def test_every_token_is_in_one_tile_and_every_row_points_to_its_token(sizes, max_tile_tokens):
    spans = []
    for number, (count, first, rows) in enumerate(sizes):
        positions = range(first + count - min(rows, count) + 1, first + count + 1)
        spans.append(Span(number, first, range(100, 100 + count), (1,), [row(p) for p in positions]))
    mirror, rules = new_mirror(), ShapeRules(200, 16, 16, max_tile_tokens)
    step = pack(spans, mirror.table, rules)
    if step.is_decode:
        assert step.arrays[: len(spans)].tolist() == step.indices
        return
    tokens, positions, requests, starts, lengths, row_tokens, row_requests, row_positions = unpack(step)
    total, null = sum(count for count, _, _ in sizes), mirror.table.null_request
    assert requests[total:] == [null] * (len(requests) - total)
    assert len(requests) > total, "there is a token of padding"
    seen, first = [], 0
    for start, length in zip(starts, lengths, strict=True):
        assert 1 <= length <= step.shape.tile_tokens
        assert len(set(requests[start : start + length])) == 1
        if requests[start] != null:
            seen += range(start, start + length)
    assert seen == list(range(total))
    expected_rows = []
    for index, span in zip(step.indices, spans, strict=True):
        count = len(span.token_ids)
        assert tokens[first : first + count] == list(span.token_ids)
        assert positions[first : first + count] == list(
            range(span.first_position, span.first_position + count)
        )
        assert requests[first : first + count] == [index] * count
        rows = [(first + count - len(span.rows) + i, index, r.position) for i, r in enumerate(span.rows)]
        expected_rows += rows
        first += count
    found = list(zip(row_tokens, row_requests, row_positions, strict=True))
    assert found[: len(expected_rows)] == expected_rows
    assert all(requests[token] == null == request for token, request, _ in found[len(expected_rows) :])


def test_the_inbox_holds_the_step_and_then_the_updates():
    mirror = new_mirror()
    step = pack([decode_span(1, 5, token=9), decode_span(2, 6, token=8)], mirror.table, RULES)
    updates = mirror.table.take_updates()
    inbox = np.zeros(200, dtype=np.int32)
    count = fill_inbox(inbox, step, updates)
    assert inbox[:3].tolist() == [len(updates.offsets), 1, INBOX_HEADER + 2]
    assert inbox[INBOX_HEADER : INBOX_HEADER + 2].tolist() == step.indices
    start = INBOX_HEADER + 2
    assert inbox[start : start + len(updates.offsets)].tolist() == updates.offsets.tolist()
    assert count == start + 2 * len(updates.offsets)


def test_padding_of_a_decode_step_belongs_to_the_null_request():
    mirror = new_mirror()
    step = pack([decode_span(i, 5, token=9) for i in range(3)], mirror.table, RULES)
    assert step.shape == StepShape(4, 4, 1, 4)
    assert step.arrays.tolist() == [*step.indices, mirror.table.null_request]


@given(st.integers(1, 5000))
def test_padding_is_small_and_never_less(count):
    assert count <= pad(count) <= max(count + 15, count)
    assert count <= pad_tokens(count) <= count + max(15, count // 8)
    assert pad_tokens(count) % 16 == 0
    assert pad(pad(count)) == pad(count)


@pytest.mark.parametrize("max_requests", [1, 3, 20, 256])
def test_every_decode_step_has_one_of_the_shapes_captured_at_the_start(max_requests):
    rules = ShapeRules(512, max_requests, 4 * max_requests)
    shapes = rules.decode_shapes
    assert shapes == sorted(shapes, reverse=True)
    assert {rules.decode(count) for count in range(1, max_requests + 1)} == set(shapes)
    assert all(shape.num_rows <= rules.max_padded_rows for shape in shapes)


def test_a_step_with_longer_tiles_is_no_decode_step():
    rules = ShapeRules(512, 32, 32)
    widths = {1: 2, 2: 2, 3: 4, 9: 16, 16: 16, 17: 64, 65: 64, 500: 64}
    assert {count: rules.tile_tokens(count) for count in widths} == widths
    assert ShapeRules(512, 32, 32, 16).tile_tokens(500) == 16


@pytest.mark.parametrize(
    ("shape", "is_worth_it"),
    [
        (StepShape(256, 256, 1, 256), True),  # decode
        (StepShape(336, 64, 8, 320), True),  # 64 requests verify 4 drafts each
        (StepShape(64, 1, 64, 1), True),
        (StepShape(80, 2, 64, 1), False),
        (StepShape(544, 48, 64, 32), False),  # a prompt among requests that decode
    ],
)
def test_what_is_launched_at_once(shape, is_worth_it):
    assert is_worth_capturing(shape) is is_worth_it
