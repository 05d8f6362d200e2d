"""Adjusted rows against engine/sampling/row_processors.py, to the bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interface.sampled_row import RowHistory
from engine.kernels.cuda.adjustments import adjust
from engine.kernels.cuda.choose import choose
from engine.kernels.cuda.packed_adjustments import pack_adjustments
from engine.kernels.cuda.twins.adjustments import adjust as twin
from engine.sampling.row_processors import process_row
from engine.sampling.token_bitmask import apply_token_bitmask
from tests.engine.kernels.cuda.sampling_cases import Step, sampled_row

VOCAB = 97
IDS = st.integers(0, VOCAB - 1)


def bitmask(token_ids, vocab_size=VOCAB):
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.bool_)
    bits[list(token_ids)] = True
    return np.packbits(bits, bitorder="little").tobytes()


HISTORIES = st.builds(
    RowHistory,
    seen_token_ids=st.sets(IDS, max_size=30).map(tuple),
    answer_counts=st.dictionaries(IDS, st.integers(1, 9), max_size=9).map(lambda d: tuple(d.items())),
    banned_token_ids=st.sets(IDS, max_size=5).map(tuple),
    token_bitmask=st.none() | st.sets(IDS, min_size=1, max_size=20).map(bitmask),
)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.1, -2.0]),
        "presence_penalty": st.sampled_from([0.0, 0.3, 2.0]),
        "logit_bias": st.dictionaries(IDS, st.sampled_from([-100.0, 0.1, 3.0]), max_size=5),
        "allowed_token_ids": st.none() | st.frozensets(IDS, min_size=1, max_size=9),
    },
)


def some_logits(num_rows, vocab_size=VOCAB, seed=0):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 4


def adjusted_rows(function, logits, entries, **settings):
    """Return `adjusted` (NaN where nothing was written) and the flags."""
    vocab_size = logits.shape[1]
    step = Step([sampled_row()] * len(logits), vocab_size)
    packed = torch.from_numpy(pack_adjustments(entries, vocab_size))
    packed = torch.cat([packed, torch.full((40,), 2**30, dtype=torch.int32)])  # what an earlier step left
    adjusted, before = torch.full((len(logits), vocab_size + 3), math.nan), logits.clone()
    step.workspace.is_adjusted.fill_(7)
    step.workspace.chunk_has_token.fill_(1)
    function(logits, adjusted, packed, step.buffers, step.state, vocab_size, len(logits), step.workspace)
    assert torch.equal(logits, before)
    assert adjusted[:, vocab_size:].isnan().all()
    return adjusted[:, :vocab_size], step.workspace.is_adjusted.tolist()


def expected_row(logits, row):
    processed = logits.clone()
    process_row(processed, row, apply_token_bitmask)
    return processed


def check(logits, entries):
    for function in (adjust, twin):
        adjusted, flags = adjusted_rows(function, logits, entries)
        assert flags == [int(n in dict(entries)) for n in range(len(logits))]
        for number, row in entries:
            assert torch.equal(adjusted[number], expected_row(logits[number], row)), row


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(PARAMS, st.none() | HISTORIES), min_size=1, max_size=3),
    order=st.permutations(range(4)),
    seed=st.integers(0, 99),
)
def test_rows_are_what_the_engine_makes_of_them(rows, order, seed):
    entries = [
        (number, sampled_row(history=history, **params))
        for number, (params, history) in zip(order, rows, strict=False)
    ]
    check(some_logits(4, seed=seed), entries)


ALL = tuple(range(VOCAB))


@pytest.mark.parametrize(
    ("params", "history"),
    [
        ({}, RowHistory(banned_token_ids=ALL)),  # would leave nothing: not applied
        ({}, RowHistory(banned_token_ids=ALL[1:])),
        ({"allowed_token_ids": frozenset({3, 4})}, RowHistory(banned_token_ids=(3, 4))),
        ({"allowed_token_ids": frozenset({3, 4})}, RowHistory(banned_token_ids=(3,))),
        ({"allowed_token_ids": frozenset({3})}, RowHistory(token_bitmask=bitmask({5, 96}))),  # grammar wins
        ({"allowed_token_ids": frozenset({3})}, RowHistory(token_bitmask=bitmask({3, 96}))),
        ({}, RowHistory(banned_token_ids=(5,), token_bitmask=bitmask({5}))),
        ({}, RowHistory(banned_token_ids=ALL, token_bitmask=bitmask({5}))),
        ({}, RowHistory(token_bitmask=bitmask({5}, 32))),  # reaches 32 tokens only
        ({"logit_bias": {5: -3.0}}, RowHistory(banned_token_ids=(5,), token_bitmask=bitmask({5, 6}, 64))),
        ({}, None),
    ],
    ids=str,
)
def test_the_rules_of_bans_and_grammar(params, history):
    check(some_logits(2), [(1, sampled_row(history=history, **params))])


def test_lists_across_parts_and_longer_than_a_block():
    vocab_size = 50_257
    generator = torch.Generator().manual_seed(1)
    seen = tuple(torch.randperm(vocab_size, generator=generator)[:2_500].tolist())
    history = RowHistory(seen, tuple((t, 1 + t % 5) for t in seen[:1_100]), seen[:7])
    params = {
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.3,
        "logit_bias": dict.fromkeys(seen[9:30], 1.5),
    }
    check(some_logits(1, vocab_size), [(0, sampled_row(history=history, **params))])


def test_a_grammar_that_bans_block_wins_across_parts():
    vocab_size = 5_000
    history = RowHistory(banned_token_ids=(4_500,), token_bitmask=bitmask({4_500}, vocab_size))
    left = RowHistory(banned_token_ids=(9,), token_bitmask=bitmask({9, 4_501}, vocab_size))
    check(some_logits(2, vocab_size), [(1, sampled_row(history=history)), (0, sampled_row(history=left))])


def test_a_step_without_adjusted_rows():
    for function in (adjust, twin):
        assert adjusted_rows(function, some_logits(2), [])[1] == [0, 0]
    assert pack_adjustments([], VOCAB).tolist() == [0]


def test_choosing_reads_what_was_adjusted_and_sees_what_was_broken():
    logits = some_logits(3)
    logits[1, 8] = math.nan  # banned, yet a fault
    params = {"temperature": 0.0}
    rows = [sampled_row(**params, history=RowHistory(token_bitmask=bitmask({40}))) for _ in range(3)]
    step = Step(rows, VOCAB)
    adjusted = torch.empty_like(logits)
    packed = torch.from_numpy(pack_adjustments(list(enumerate(rows))[:2], VOCAB))
    adjust(logits, adjusted, packed, step.buffers, step.state, VOCAB, 3, step.workspace)
    step.call(choose, logits, adjusted=adjusted)
    tokens = step.buffers.results[:3].tolist()
    assert (tokens[0], tokens[2]) == (40, logits[2].argmax())
    assert step.buffers.faults.tolist() == [0, 0, 0, 1, 0, 0]
