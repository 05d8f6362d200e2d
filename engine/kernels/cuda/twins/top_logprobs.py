"""Logprobs as engine/kernels/cuda/top_logprobs.py finds them, in float64 and by sorting."""

import torch
from torch import Tensor

from engine.kernels.cuda.sampling_workspace import SamplingWorkspace
from engine.kernels.cuda.step_buffers import StepBuffers


def top_logprobs(
    logits: Tensor,
    buffers: StepBuffers,
    num_rows: int,
    tops: int,
    out_values: Tensor,
    out_ids: Tensor,
    out_chosen: Tensor,
    workspace: SamplingWorkspace,
) -> None:
    """Write the logprob of each row's token, and the `tops` likeliest with theirs."""
    x = logits[:num_rows, : workspace.vocab_size].double()
    logprobs = x.log_softmax(dim=-1)
    chosen = buffers.results[:num_rows].long().unsqueeze(1)
    out_chosen[:num_rows] = logprobs.gather(1, chosen)[:, 0].float()
    ordered = x.sort(dim=-1, descending=True, stable=True).indices[:, :tops]
    values, count = logprobs.gather(1, ordered).float(), ordered.shape[1]
    out_values[:num_rows], out_ids[:num_rows] = float("-inf"), -1
    out_values[:num_rows, :count] = values
    out_ids[:num_rows, :count] = torch.where(values > float("-inf"), ordered.int(), -1)
