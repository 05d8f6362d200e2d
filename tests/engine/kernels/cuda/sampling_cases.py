"""Rows, requests and buffers for the tests of the sampling kernels."""

import torch

from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda import request_state as columns
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.sampling.noise import noise_base

CPU = torch.device("cpu")


def sampled_row(position=5, seed=1, choice=0, history=None, **params):
    return SampledRow(SamplingParams(max_tokens=99, **params), seed, choice, position, history)


class Step:
    """Rows of a step, each of a request of its own, and the null request for padding rows (None)."""

    def __init__(self, rows, vocab_size, num_candidates=2048):
        self.rows, self.vocab_size, self.num_rows = rows, vocab_size, len(rows)
        count = len(rows)
        self.state = RequestState(max_requests=count, max_blocks=2, null_block=9, device=CPU)
        self.buffers = StepBuffers(max_tokens=count + 3, max_tiles=count, max_rows=count, device=CPU)
        self.workspace = SamplingWorkspace(
            max_rows=count, vocab_size=vocab_size, device=CPU, num_candidates=num_candidates
        )
        for number, row in enumerate(rows):
            request = count if row is None else number
            self.buffers.row_requests[number] = request
            self.buffers.row_tokens[number] = 0 if row is None else number + 2
            if row is not None:
                self.buffers.row_positions[number] = row.position
                set_request(self.state, request, row)

    def call(self, function, logits, **settings):
        function(logits, self.buffers, self.state, self.vocab_size, self.num_rows, self.workspace, **settings)


def set_request(state, request, row):
    """Write what the host writes when a request arrives."""
    params = row.params
    state.integers(columns.TOP_K)[request] = max(params.top_k, 0)
    floats = {
        columns.TEMPERATURE: 0.0 if params.is_greedy else params.temperature,
        columns.TOP_P: params.top_p,
        columns.MIN_P: params.min_p,
        columns.TYPICAL_P: params.typical_p,
    }
    for column, value in floats.items():
        state.floats(column)[request] = value
    low, high = noise_base(row.seed, row.choice)
    state.integers(columns.NOISE_LOW)[request] = low
    state.integers(columns.NOISE_HIGH)[request] = high
