"""A step in buffers that stay where they are, against plain arithmetic and against tensors of its own."""

import random

import pytest
import torch

from engine.model.attention_tiles import QuerySpan
from engine.model.input_buffers import InputBuffers
from engine.model.model_input import TokenSpan, lay_out

CPU = torch.device("cpu")
BLOCK = 4


def random_step(rng):
    spans = []
    for _ in range(rng.randrange(1, 6)):
        first, count = rng.randrange(30), rng.randrange(1, 9)
        blocks = rng.sample(range(64), -(-(first + count) // BLOCK) + rng.randrange(2))
        spans.append(TokenSpan([rng.randrange(100) for _ in range(count)], first, tuple(blocks), 1))
    return spans


@pytest.mark.parametrize("seed", range(20))
def test_fixed_buffers_hold_each_step_and_nothing_of_the_last(seed):
    rng = random.Random(seed)
    buffers = InputBuffers(max_tokens=48, max_spans=6, max_blocks=11, device=CPU)
    addresses = None
    for _ in range(5):
        spans = random_step(rng)
        tensors = lay_out(spans, block_size=BLOCK, device=CPU, buffers=buffers).tensors
        own = lay_out(spans, block_size=BLOCK, device=CPU).tensors
        for name, mine, theirs in zip(tensors._fields, tensors, own, strict=True):
            width = theirs.shape[-1]
            assert torch.equal(mine[..., :width] if name == "block_tables" else mine, theirs), name
        assert not tensors.block_tables[:, own.block_tables.shape[1] :].any()
        assert addresses in (None, [tensor.data_ptr() for tensor in tensors]), "a graph reads them there"
        addresses = [tensor.data_ptr() for tensor in tensors]
        starts = 0
        for number, span in enumerate(spans):
            rows = range(starts, starts + len(span.token_ids))
            assert tensors.query_starts[number] == starts
            assert tensors.sequence_lengths[number] == span.first_position + len(span.token_ids)
            for offset, row in enumerate(rows):
                position = span.first_position + offset
                assert tensors.token_ids[row] == span.token_ids[offset]
                assert tensors.positions[row] == position
                slot = span.block_ids[position // BLOCK] * BLOCK + position % BLOCK
                assert tensors.slot_mapping[row] == slot
                assert tensors.block_tables[number, position // BLOCK] == slot // BLOCK
            starts += len(span.token_ids)
        assert tensors.query_starts[len(spans)] == starts == len(tensors.token_ids)


def test_a_step_that_does_not_fit_gets_tensors_of_its_own():
    buffers = InputBuffers(max_tokens=4, max_spans=1, max_blocks=1, device=CPU)
    fitting = QuerySpan(0, 4, 0, (7,))
    assert buffers.fits([1, 2, 3, 4], [fitting])
    assert not buffers.fits([1, 2, 3, 4, 5], [QuerySpan(0, 5, 0, (7,))])
    assert not buffers.fits([1, 2], [QuerySpan(0, 1, 0, (7,)), QuerySpan(1, 1, 0, (8,))])
    assert not buffers.fits([1], [QuerySpan(0, 1, 0, (7, 8))])
    large = [TokenSpan((1, 2, 3, 4, 5), 0, (7, 8), 1)]
    assert lay_out(large, block_size=BLOCK, device=CPU, buffers=buffers).tensors.token_ids.tolist() == [
        1,
        2,
        3,
        4,
        5,
    ]
