"""Kernels: what runs on the device, behind one record: Triton's kernels or their twins in torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Kernel = Callable[..., None]
"""A launcher; its signature stands where it is defined, and its twin has the same."""


def take_rows(source: Tensor, numbers: Tensor, out: Tensor) -> None:
    """Copy the numbered rows, int32 [num_rows], of [num_tokens, ...] to [num_rows, ...]."""
    torch.index_select(source, 0, numbers, out=out)


def copy(source: Tensor, target: Tensor) -> None:
    """Copy on the device."""
    target.copy_(source)


class Kernels(NamedTuple):
    """Every launcher of a step, in the order in which a step uses them."""

    begin_decode: Kernel
    begin_step: Kernel
    embed: Kernel
    project: Kernel
    project_quantized: Kernel
    dequantize: Kernel
    write_kv: Kernel
    attend: Kernel
    take_rows: Kernel
    normalize: Kernel
    adjust: Kernel
    choose: Kernel
    top_logprobs: Kernel
    accept_drafts: Kernel
    end_step: Kernel
    copy: Kernel
