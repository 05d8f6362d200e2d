"""From logits to tokens as engine/kernels/cuda/choose.py does it, in plain torch: the same bits."""

import torch
from torch import Tensor

from engine.kernels.cuda.request_state import NOISE_HIGH, NOISE_LOW, TEMPERATURE, RequestState
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.twins.filters import chosen_rows, find_thresholds
from engine.kernels.cuda.twins.noise import gumbel, noise_bits, position_keys

_NEVER = float("-inf")


def choose(
    logits: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    adjusted: Tensor | None = None,
    has_filters: bool = True,  # noqa: ARG001 - as the kernel's: what filters find is the same
    dependent: bool = False,
) -> None:
    """Write each row's token to buffers.results, from float32 logits [num_rows, >= vocab_size]."""
    find_thresholds(
        logits, buffers, state, vocab_size, num_rows, workspace, adjusted=adjusted, dependent=dependent
    )
    x = chosen_rows(logits, num_rows, vocab_size, workspace, adjusted)
    requests = buffers.row_requests[:num_rows]
    temperature = state.floats(TEMPERATURE)[requests].unsqueeze(1)
    sums = torch.where(temperature > 0, _noisy(x, requests, temperature, buffers, state, workspace), x)
    # argmax takes the first among equals where torch's maximum is unique; compare to be sure of it
    is_best = sums == sums.amax(dim=-1, keepdim=True)
    token_ids = torch.arange(vocab_size, device=x.device).expand_as(sums)
    tokens = token_ids.masked_fill(~is_best, vocab_size).amin(dim=-1)
    is_broken = ~((x < float("inf")) & (logits[:num_rows, :vocab_size] < float("inf"))).all(dim=-1)
    buffers.results[:num_rows] = tokens.masked_fill(is_broken, 0).int()
    is_reported = is_broken & (requests != state.null_request)
    buffers.faults[buffers.row_tokens[:num_rows][is_reported]] = 1


def _noisy(
    x: Tensor,
    requests: Tensor,
    temperature: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    workspace: SamplingWorkspace,
) -> Tensor:
    """Return scaled logits with noise, -inf for those that a filter removed."""
    num_rows, vocab_size = x.shape
    scaled = x / temperature
    least, highest, mean, limit = workspace.thresholds[:num_rows].unsqueeze(2).unbind(1)
    is_kept = (scaled >= least) & (((highest - scaled) - mean).abs() <= limit)
    positions = buffers.row_positions[:num_rows]
    low, high = state.integers(NOISE_LOW)[requests], state.integers(NOISE_HIGH)[requests]
    noise = gumbel(noise_bits(*position_keys(low, high, positions), vocab_size))
    return torch.where(is_kept, scaled + noise, _NEVER)
