"""Counts on the device against the histories that the host would have sent."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import Request
from engine.core.rows import rows_of
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda import request_state as columns
from engine.kernels.cuda.adjustments import adjust
from engine.kernels.cuda.packed_adjustments import pack_adjustments
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.token_counts import count_tokens, token_counts
from engine.kernels.cuda.twins.adjustments import adjust as adjust_twin
from engine.kernels.cuda.twins.token_counts import count_tokens as count_twin
from engine.sampling.row_processors import process_row
from engine.sampling.token_bitmask import apply_token_bitmask
from tests.engine.kernels.cuda.test_acceptance import CPU, Tile, lay_out

VOCAB = 11
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": -0.4}


def request(prompt, answer, **params):
    made = Request(
        request_id=0,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=99, **params),
        seed=0,
        choice=0,
        root_hash=b"",
        stop_token_ids=frozenset(),
        max_total_tokens=1000,
    )
    for token_id in answer:
        made.append(token_id)
    return made


def penalise(state, index, count_row, params):
    state.integers(columns.COUNT_ROW)[index] = count_row
    for column, name in (
        (columns.REPETITION_PENALTY, "repetition_penalty"),
        (columns.FREQUENCY_PENALTY, "frequency_penalty"),
        (columns.PRESENCE_PENALTY, "presence_penalty"),
    ):
        state.floats(column)[index] = params[name]


def test_no_request_has_a_count_row_at_first():
    state = RequestState(max_requests=3, max_blocks=1, null_block=0, device=CPU)
    assert state.integers(columns.COUNT_ROW).tolist() == [-1] * 4


@settings(max_examples=15, deadline=None)
@given(
    prompt=IDS, answer=IDS, drafts=st.lists(st.integers(0, VOCAB - 1), max_size=4), seed=st.integers(0, 99)
)
def test_penalties_are_the_engines_drafts_included(prompt, answer, drafts, seed):
    made = request(prompt, answer, **PENALTIES)
    chosen = [0] * (1 + len(drafts))
    state, buffers, shape = lay_out([Tile(5, [1], [], [0]), Tile(2, [answer[-1]], drafts, chosen)])
    penalise(state, 2, 1, PENALTIES)
    counts = torch.stack([torch.full((VOCAB,), 99, dtype=torch.int32)] * 3)
    counts[1] = token_counts(made.prompt_token_ids, made.answer_counts, VOCAB)
    logits = torch.randn(shape.num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    packed = torch.from_numpy(pack_adjustments([], VOCAB))
    for function in (adjust, adjust_twin):
        workspace = SamplingWorkspace(max_rows=shape.num_rows, vocab_size=VOCAB, device=CPU)
        adjusted = torch.full_like(logits, torch.nan)
        function(logits, adjusted, packed, buffers, state, VOCAB, shape.num_rows, workspace, counts=counts)
        assert workspace.is_adjusted.tolist() == [0, *[1] * len(chosen), 0, 0]
        for place, row in enumerate(rows_of(made, drafts)):
            expected = logits[1 + place].clone()
            process_row(expected, row, apply_token_bitmask)
            assert torch.equal(adjusted[1 + place], expected)


def test_a_bias_comes_after_the_penalties_of_the_table():
    made = request([1, 2], [3, 3, 4], **PENALTIES, logit_bias={3: 5.0})
    state, buffers, _ = lay_out([Tile(2, [4], [], [0])], padding_rows=0)
    penalise(state, 2, 0, PENALTIES)
    counts = token_counts(made.prompt_token_ids, made.answer_counts, VOCAB).unsqueeze(0)
    logits, workspace = torch.ones(1, VOCAB), SamplingWorkspace(max_rows=1, vocab_size=VOCAB, device=CPU)
    [row] = rows_of(made)
    packed = torch.from_numpy(pack_adjustments([(0, row._replace(history=None))], VOCAB))
    expected = logits[0].clone()
    process_row(expected, row, apply_token_bitmask)
    for function in (adjust, adjust_twin):
        adjusted = torch.empty_like(logits)
        function(logits, adjusted, packed, buffers, state, VOCAB, 1, workspace, counts=counts)
        assert torch.equal(adjusted[0], expected)


def test_new_tokens_are_counted_where_they_were_accepted():
    tiles = [
        Tile(1, [7], [5, 5, 6], [5, 5, 9, 1]),  # two right and one more
        Tile(3, [7], [], [4]),  # has no count row
        Tile(0, [7], [2], [3, 3]),
        Tile(4, [7, 8]),  # no rows
    ]
    for function in (count_tokens, count_twin):
        state, buffers, shape = lay_out(tiles)
        state.integers(columns.COUNT_ROW)[torch.tensor([1, 0, 4])] = torch.tensor(
            [2, 0, 1], dtype=torch.int32
        )
        counts = torch.zeros(3, VOCAB, dtype=torch.int32)
        counts[2, 5] = 1
        function(buffers, state, shape, torch.tensor([2, 0, 0, 0, 0], dtype=torch.int32), counts)
        expected = torch.zeros(3, VOCAB, dtype=torch.int32)
        expected[2, 5], expected[2, 9], expected[0, 3] = 5, 2, 2
        assert torch.equal(counts, expected)
