"""Verification of drafts against the engine's own bookkeeping, and the twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.answer_end import append_run
from engine.core.request import Request
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda.acceptance import accept_drafts
from engine.kernels.cuda.request_state import LAST_TOKEN, NEXT_POSITION, RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.kernels.cuda.twins.acceptance import accept_drafts as twin

CPU = torch.device("cpu")


class Tile:
    """A request's tokens in a step: `known` ones, drafts, what the rows chose; no row if that is empty."""

    def __init__(self, request, known, drafts=(), chosen=(), faults=()):
        self.request, self.known, self.drafts = request, list(known), list(drafts)
        self.chosen, self.faults = list(chosen), list(faults)  # faults: numbers of drafts, from 1


def lay_out(tiles, max_requests=8, padding_rows=2):
    """Return state, buffers and shape of a step with a padding tile and padding rows that name token 0."""
    state = RequestState(max_requests=max_requests, max_blocks=1, null_block=0, device=CPU)
    state.table[:, :2] = -5
    num_tokens = sum(len(t.known) + len(t.drafts) for t in tiles) + 1
    num_rows = sum(len(t.chosen) for t in tiles) + padding_rows
    buffers = StepBuffers(max_tokens=num_tokens, max_tiles=len(tiles) + 1, max_rows=num_rows, device=CPU)
    buffers.row_requests.fill_(state.null_request)
    buffers.results.fill_(-3)
    token = row = 0
    for number, tile in enumerate(tiles):
        ids = tile.known + tile.drafts
        buffers.tile_starts[number], buffers.tile_lengths[number] = token, len(ids)
        buffers.token_ids[token : token + len(ids)] = torch.tensor(ids, dtype=torch.int32)
        buffers.token_requests[token : token + len(ids)] = tile.request
        for place, choice in enumerate(tile.chosen):
            at = token + len(tile.known) - 1 + place
            buffers.row_tokens[row], buffers.row_requests[row] = at, tile.request
            buffers.row_positions[row], buffers.results[row] = 100 * tile.request + place, choice
            row += 1
        for draft in tile.faults:
            buffers.faults[token + len(tile.known) - 1 + draft] = 1
        token += len(ids)
    buffers.tile_starts[len(tiles)], buffers.tile_lengths[len(tiles)] = token, 1
    buffers.token_requests[token] = state.null_request
    return state, buffers, StepShape(num_tokens, len(tiles) + 1, 1, num_rows)


def accepted(function, tiles):
    state, buffers, shape = lay_out(tiles)
    counts = torch.full((shape.num_tiles + 1,), -9, dtype=torch.int32)
    function(buffers, state, shape, counts)
    assert counts[-1] == -9
    assert counts[-2] == 0  # the padding tile
    assert state.table[state.null_request, :2].tolist() == [-5, -5]
    states = [
        (state.integers(LAST_TOKEN)[t.request], state.integers(NEXT_POSITION)[t.request]) for t in tiles
    ]
    return counts[:-2].tolist(), [(int(a), int(b)) for a, b in states]


@pytest.mark.parametrize("function", [accept_drafts, twin])
def test_scripted_tiles(function):
    tiles = [
        Tile(3, [7], [1, 2, 3], [1, 2, 3, 4]),  # all right
        Tile(0, [7], [1, 2, 3], [9, 2, 3, 4]),  # none
        Tile(1, [7], [1, 2, 3], [1, 9, 3, 4]),  # the first; the third may not count after a wrong one
        Tile(2, [5, 6, 7], [], [8]),  # the end of a prompt
        Tile(4, [5, 6, 7]),  # the middle of one
        Tile(5, [7], [], [6]),
        Tile(6, [5, 7], [1], [1, 2]),
        Tile(7, [7], [1, 2], [1, 2, 3], faults=[2]),
    ]
    counts, states = accepted(function, tiles)
    assert counts == [3, 0, 1, 0, 0, 0, 1, 1]
    assert states == [
        (4, 303), (9, 0), (9, 101), (8, 200), (-5, -5), (6, 500), (2, 601), (2, 701),
    ]  # fmt: skip


def engine_count(tile):
    """How many drafts the engine's own bookkeeping takes over."""
    request = Request(
        request_id=0,
        prompt_token_ids=tuple(tile.known),
        params=SamplingParams(max_tokens=99),
        seed=0,
        choice=0,
        root_hash=b"",
        stop_token_ids=frozenset(),
        max_total_tokens=1000,
    )

    class Chunk:
        draft_token_ids = tuple(tile.drafts)
        token_ids = tuple(tile.known + tile.drafts)
        num_drafts = len(tile.drafts)

    faults = frozenset(len(tile.known) - 1 + draft for draft in tile.faults)
    num_new, _ = append_run(request, Chunk(), tile.chosen, 0, faults)
    return num_new - 1, request.token_ids[-1]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_counts_are_the_engines(data):
    ids = st.integers(0, 2)  # so that drafts are often right
    tiles = []
    for request in data.draw(st.permutations(range(4))):
        drafts = data.draw(st.lists(ids, max_size=5))
        chosen = data.draw(st.lists(ids, min_size=len(drafts) + 1, max_size=len(drafts) + 1))
        faults = data.draw(st.sets(st.integers(1, 5), max_size=1))
        known = data.draw(st.lists(ids, min_size=1, max_size=3))
        tiles.append(Tile(request, known, drafts, chosen, [f for f in faults if f <= len(drafts)]))
    counts, states = accepted(accept_drafts, tiles)
    assert (counts, states) == accepted(twin, tiles)
    expected = [engine_count(tile) for tile in tiles]
    assert list(zip(counts, [last for last, _ in states], strict=True)) == expected
