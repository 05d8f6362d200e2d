"""Cases of the kernels that choose tokens: on the device, against their twins on the CPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda import request_state as columns
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from engine.sampling import noise
from tests.gpu import wiring
from tests.gpu.cases import Case, Pair
from tests.gpu.scene import make_buffers
from tests.gpu.setting import Setting
from tests.gpu.wiring import NotThereError, need

_PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=20),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.2, top_p=0.9),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=0.9, typical_p=0.8),
    SamplingParams(temperature=1.1, top_k=300, top_p=0.95, min_p=0.01, typical_p=0.9),
)
_NUM_PADDING = 2


@dataclass(frozen=True)
class Choosing:
    """Rows of a step, each of a request of its own, then padding rows of the null request."""

    state: RequestState
    buffers: StepBuffers
    workspace: object
    logits: Tensor  # float32 [num_rows, vocab_size]

    def tensors(self) -> Mapping[str, Tensor]:
        """Return all that a kernel may write."""
        found = {**vars(self.workspace), **vars(self.buffers)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def call(self, module: str, function: str) -> None:
        """Run one function of the common signature."""
        num_rows, vocab_size = self.logits.shape
        launcher = getattr(need(module), function)
        launcher(self.logits, self.buffers, self.state, vocab_size, num_rows, self.workspace)


def sampling_cases(setting: Setting) -> Iterator[Case]:
    """Yield each kernel of the sampling chain, one after the other on the same rows, by vocabulary."""
    for vocab_size in (5000,) if setting.rehearse else (2048, 50_257, 151_936):
        for module, function in wiring.SAMPLING:
            pairs = partial(_sampling_pairs, setting, vocab_size, module, function)
            yield Case(f"{module}.{function}, {vocab_size} tokens", pairs, 1e-5)


def _sampling_pairs(setting: Setting, vocab_size: int, module: str, function: str) -> Iterator[Pair]:
    """Run the chain up to this function on both sides; compare what it wrote for the real rows."""
    for seed in range(setting.number(1, 2, 4)):
        here, there = (
            make_choosing(vocab_size, device, seed) for device in (setting.device, torch.device("cpu"))
        )
        for before, name in wiring.SAMPLING[: wiring.SAMPLING.index((module, function)) + 1]:
            here.call(before, name)
            there.call(f"twins.{before}", name)
        for name, expected in there.tensors().items():
            if name not in wiring.SCRATCH:
                found = here.tensors()[name].cpu()
                yield _finite(found), _finite(expected)


def _finite(tensor: Tensor) -> Tensor:
    """Replace infinities, which stand for "no limit", by numbers that can be compared."""
    return tensor.nan_to_num(nan=7e6, posinf=8e6, neginf=-9e6) if tensor.is_floating_point() else tensor


def make_choosing(vocab_size: int, device: torch.device, seed: int) -> Choosing:
    """Return rows with ties among their logits, the same on every device."""
    num_requests = len(_PARAMS)
    num_rows = num_requests + _NUM_PADDING
    state = RequestState(max_requests=num_requests, max_blocks=2, null_block=9, device=device)
    buffers = make_buffers(StepShape(num_rows, num_rows, 1, num_rows), device)
    for number in range(num_rows):
        buffers.row_requests[number] = min(number, num_requests)
        buffers.row_positions[number] = 5 + number
        buffers.row_tokens[number] = number
    for number, params in enumerate(_PARAMS):
        _write_request(state, number, params, seed)
    workspace = need("sampling_workspace").SamplingWorkspace(
        max_rows=num_rows, vocab_size=vocab_size, device=device
    )
    generator = torch.Generator().manual_seed(seed)
    logits = (32 * torch.randn(num_rows, vocab_size, generator=generator)).round() / 16
    return Choosing(state, buffers, workspace, logits.to(device))


def _write_request(state: RequestState, number: int, params: SamplingParams, seed: int) -> None:
    """Write what the host writes when a request arrives."""
    noise_base = getattr(noise, "noise_base", None)
    if noise_base is None:
        raise NotThereError("engine/sampling/noise.py has no noise_base")
    low, high = noise_base(seed * 1000 + number, 0)
    integers = {columns.TOP_K: params.top_k, columns.NOISE_LOW: low, columns.NOISE_HIGH: high}
    floats = {
        columns.TEMPERATURE: params.temperature,
        columns.TOP_P: params.top_p,
        columns.MIN_P: params.min_p,
        columns.TYPICAL_P: params.typical_p,
    }
    for column, integer in integers.items():
        state.integers(column)[number] = integer
    for column, value in floats.items():
        state.floats(column)[number] = value
