"""Around the model: the kernels in Triton's interpreter against their twins, bit for bit."""

import pytest
import torch

from engine.interface.batch import PENDING_TOKEN
from engine.kernels.cuda import step_state
from engine.kernels.cuda.request_state import BLOCK_TABLE, LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.step_buffers import INBOX_HEADER, StepBuffers, StepShape
from engine.kernels.cuda.twins import step_state as twins

NULL_BLOCK = 77
ARRAYS = ["token_ids", "positions", "token_requests", "tile_starts", "tile_lengths"]
ARRAYS += ["row_tokens", "row_requests", "row_positions", "decode_requests", "faults", "results", "inbox"]


def new_pair(max_tokens=600, max_requests=300):
    """Twice the same state and buffers, with something in every place."""
    pairs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        state = RequestState(
            max_requests=max_requests, max_blocks=5, null_block=NULL_BLOCK, device=torch.device("cpu")
        )
        state.table[:-1].random_(0, 1000, generator=generator)
        buffers = StepBuffers(
            max_tokens=max_tokens,
            max_tiles=max_tokens,
            max_rows=max_tokens,
            max_updates=2000,
            device=torch.device("cpu"),
        )
        for name in ARRAYS[:-1]:
            getattr(buffers, name).random_(0, max_requests, generator=generator)
        pairs.append((buffers, state))
    return pairs


def assert_equal(pairs):
    (ours, our_state), (theirs, their_state) = pairs
    assert torch.equal(our_state.table, their_state.table)
    for name in ARRAYS:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def fill(buffers, *, arrays=(), has_requests=0, updates=()):
    start = INBOX_HEADER + len(arrays)
    offsets, values = [o for o, _ in updates], [v for _, v in updates]
    numbers = [len(updates), has_requests, start, 0, *arrays, *offsets, *values]
    buffers.inbox[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)


def both(pairs, name, shape, **news):
    for module, (buffers, state) in zip((step_state, twins), pairs, strict=True):
        if news:
            fill(buffers, **news)
        getattr(module, name)(buffers, state, shape)
    assert_equal(pairs)
    return pairs[0]


def decode(num_rows):
    return StepShape(num_rows, num_rows, 1, num_rows)


@pytest.mark.parametrize("num_rows", [1, 8, 256, 272])
def test_a_decode_step_is_laid_out_from_the_table(num_rows):
    pairs = new_pair()
    requests = [(7 * i) % 300 for i in range(num_rows)]
    width = pairs[0][1].width
    updates = [(requests[0] * width + LAST_TOKEN, 5), (requests[0] * width + NEXT_POSITION, 40)]
    buffers, state = both(
        pairs, "begin_decode", decode(num_rows), arrays=requests, has_requests=1, updates=updates
    )
    assert buffers.token_ids[0] == 5
    assert buffers.positions[0] == 40
    assert buffers.row_positions[0] == 41
    assert buffers.token_requests[:num_rows].tolist() == requests
    assert buffers.token_ids[:num_rows].tolist() == state.table[requests, LAST_TOKEN].tolist()
    assert buffers.tile_lengths[:num_rows].tolist() == [1] * num_rows


def test_the_next_decode_step_needs_no_news():
    pairs, shape = new_pair(), decode(4)
    both(pairs, "begin_decode", shape, arrays=[9, 3, 4, 300], has_requests=1, updates=[])
    for buffers, state in pairs:
        buffers.results[:4] = torch.tensor([11, 12, 13, 14])
        state.table[-1].zero_()
    before = [int(pairs[0][1].table[i, NEXT_POSITION]) for i in (9, 3, 4)]
    both(pairs, "end_step", shape)
    assert pairs[0][0].inbox[:2].tolist() == [0, 0]
    buffers, state = both(pairs, "begin_decode", shape)
    assert buffers.token_ids[:4].tolist() == [11, 12, 13, 0]
    assert buffers.positions[:3].tolist() == [p + 1 for p in before]
    assert state.table[-1].tolist() == [0] * state.width, "padding leaves the null request alone"


def test_many_updates_go_where_they_belong():
    pairs = new_pair()
    width = pairs[0][1].width
    updates = [(i * width + BLOCK_TABLE + i % 5, 1000 + i) for i in range(300)]
    updates += [(i * width, -i) for i in range(300)] + [(i * width + 1, i) for i in range(300)]
    both(pairs, "begin_decode", decode(1), arrays=[0], has_requests=1, updates=updates)


def test_a_step_of_any_kind_is_taken_from_the_inbox():
    pairs, shape = new_pair(), StepShape(32, 16, 8, 4)
    tokens = [PENDING_TOKEN if i == 3 else i + 50 for i in range(32)]
    arrays = tokens + list(range(100, 132)) + [i // 4 for i in range(32)]  # positions, requests
    arrays += [2 * i for i in range(16)] + [2] * 16  # tiles
    arrays += [3, 9, 31, 31, 0, 2, 300, 300, 104, 110, 0, 0]  # rows
    buffers, state = both(pairs, "begin_step", shape, arrays=arrays, updates=[(LAST_TOKEN, 999)])
    assert buffers.token_ids[:5].tolist() == [50, 51, 52, 999, 54]
    assert buffers.row_positions[:4].tolist() == [104, 110, 0, 0]
    assert state.table[0, LAST_TOKEN] == 999


def test_only_a_request_with_one_row_has_its_token_remembered():
    pairs, shape = new_pair(), StepShape(48, 16, 4, 16)
    requests = [5, 5, 5, 6, 7, 7, 8] + [300] * 9
    for buffers, _ in pairs:
        buffers.row_requests[:16] = torch.tensor(requests)
    table = pairs[0][1].table.clone()
    buffers, state = both(pairs, "end_step", shape)
    changed = (state.table != table).any(dim=1).nonzero().flatten().tolist()
    assert changed == [6, 8]
    assert state.table[6, NEXT_POSITION] == buffers.row_positions[3]


def test_faults_are_reported_once_behind_the_tokens():
    pairs, shape = new_pair(), StepShape(16, 4, 4, 2)
    for buffers, _ in pairs:
        buffers.faults.zero_()
        buffers.faults[5] = 1
    buffers, _ = both(pairs, "end_step", shape)
    assert buffers.results[2:18].nonzero().flatten().tolist() == [5]
    assert not buffers.faults.any()


def test_rows_of_none_and_more_than_a_block_of_tokens():
    pairs, shape = new_pair(), StepShape(512, 16, 64, 0)
    both(pairs, "end_step", shape)
