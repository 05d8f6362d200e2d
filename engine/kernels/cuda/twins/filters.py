"""The thresholds of engine/kernels/cuda/filters.py in plain torch, by sorting each row."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.cuda.request_state import MIN_P, TEMPERATURE, TOP_K, TOP_P, TYPICAL_P, RequestState
from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers
from engine.kernels.cuda.twins.exact_math import LEAST_NORMAL, logarithm, share_of

_NEVER = float("-inf")
_PASSING = (_NEVER, 0.0, 0.0, float("inf"))


class RowFilters(NamedTuple):
    """The parameters of a request that shorten its rows."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    typical_p: Tensor


def find_thresholds(
    logits: Tensor,
    buffers: StepBuffers,
    state: RequestState,
    vocab_size: int,
    num_rows: int,
    workspace: SamplingWorkspace,
    *,
    adjusted: Tensor | None = None,
    dependent: bool = False,  # noqa: ARG001 - as the kernel's
) -> None:
    """Write workspace.thresholds of float32 logits [num_rows, >= vocab_size] for their requests' filters."""
    source = chosen_rows(logits, num_rows, vocab_size, workspace, adjusted)
    for row in range(num_rows):
        request = buffers.row_requests[row]
        columns = (state.floats(TEMPERATURE), state.integers(TOP_K), state.floats(TOP_P))
        more = (state.floats(MIN_P), state.floats(TYPICAL_P))
        filters = RowFilters(*(column[request] for column in (*columns, *more)))
        workspace.thresholds[row] = torch.tensor(_thresholds(source[row], filters))


def chosen_rows(
    logits: Tensor, num_rows: int, vocab_size: int, workspace: SamplingWorkspace, adjusted: Tensor | None
) -> Tensor:
    """Return the rows that tokens are chosen by, float32 [num_rows, vocab_size]."""
    rows = logits[:num_rows, :vocab_size]
    if adjusted is None:
        return rows
    is_adjusted = workspace.is_adjusted[:num_rows] != 0
    return torch.where(is_adjusted.unsqueeze(1), adjusted[:num_rows, :vocab_size], rows)


def _thresholds(logits: Tensor, filters: RowFilters) -> tuple[float, float, float, float]:
    """Return the least logit kept, the highest, the mean distance and how far from it may be kept."""
    vocab_size = len(logits)
    limits_k = bool(0 < filters.top_k < vocab_size)
    is_on = limits_k or filters.top_p < 1 or filters.min_p > 0 or filters.typical_p < 1
    if not filters.temperature > 0 or not is_on:
        return _PASSING
    x = logits / filters.temperature
    highest = x.max()
    if not (x < float("inf")).all() or highest == _NEVER:
        return _PASSING
    least = torch.tensor(_NEVER)
    if limits_k:
        least = x.sort(descending=True).values[filters.top_k - 1]
    if filters.top_p < 1:
        shares = share_of(highest - x).masked_fill(x < least, 0)
        least = torch.maximum(least, _reaching(x, shares, filters.top_p))
    if filters.min_p > 0:
        least = torch.maximum(least, highest + logarithm(filters.min_p.clamp(min=LEAST_NORMAL)))
    if not filters.typical_p < 1:
        return least.item(), highest.item(), 0.0, float("inf")
    shares = share_of(highest - x).masked_fill(x < least, 0)
    distances = (shares.float() * (highest - x).clamp(max=64.0)).long().sum()
    mean = (distances.double() / shares.sum().double()).float()
    nearness = (-((highest - x) - mean).abs()).masked_fill(x < least, _NEVER)
    limit = -_reaching(nearness, shares, filters.typical_p)
    return least.item(), highest.item(), mean.item(), limit.item()


def _reaching(values: Tensor, shares: Tensor, part: Tensor) -> Tensor:
    """Return the highest value from which up the shares reach that part of their sum."""
    ordered = values.sort(descending=True)
    mass = shares[ordered.indices].cumsum(0)  # exact: integers
    need = (part.double() * mass[-1].double()).ceil().long().clamp(min=1)
    return ordered.values[(mass < need).sum()]
