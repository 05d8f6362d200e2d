"""Cases of the kernels that choose tokens: on the device, against their twins on the CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.interface.sampled_row import RowHistory, SampledRow
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
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Choosing:
    """Rows of a step, each of a request of its own, then padding rows of the null request."""

    state: RequestState
    buffers: StepBuffers
    workspace: object
    logits: Tensor  # float32 [num_rows, vocab_size]

    def tensor(self, name: str) -> Tensor:
        """Return one of the tensors that kernels write."""
        owner = self.buffers if hasattr(self.buffers, name) else self.workspace
        tensor: Tensor = getattr(owner, name)
        return tensor

    def call(self, module: str, function: str) -> None:
        """Run one function of the common signature."""
        num_rows, vocab_size = self.logits.shape
        launcher = getattr(need(module), function)
        launcher(self.logits, self.buffers, self.state, vocab_size, num_rows, self.workspace)


def sampling_cases(setting: Setting) -> Iterator[Case]:
    """Yield each function of the sampling chain by vocabulary."""
    for vocab_size in (5000,) if setting.rehearse else (2048, 50_257, 151_936):
        for module, function, outputs in wiring.SAMPLING:
            pairs = partial(_sampling_pairs, setting, vocab_size, module, function, outputs)
            yield Case(f"{module}.{function}, {vocab_size} tokens", pairs, 1e-5)


def _sampling_pairs(
    setting: Setting, vocab_size: int, module: str, function: str, outputs: Sequence[str]
) -> Iterator[Pair]:
    """Run a function on both sides and compare what it wrote."""
    for seed in range(setting.number(1, 2, 4)):
        here, there = (make_choosing(vocab_size, device, seed) for device in (setting.device, _CPU))
        here.call(module, function)
        there.call(f"twins.{module}", function)
        for name in outputs:
            yield _finite(here.tensor(name).cpu()), _finite(there.tensor(name))


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


def adjustment_cases(setting: Setting) -> Iterator[Case]:
    """Yield penalties, biases, bans and a grammar's mask, each on a row of its own."""
    for vocab_size in (300,) if setting.rehearse else (2048, 50_257, 151_936):
        yield Case(f"{vocab_size} tokens", partial(_adjustment_pairs, setting, vocab_size), 1e-6)


def _adjustment_pairs(setting: Setting, vocab_size: int) -> Iterator[Pair]:
    results = []
    for device, module in ((setting.device, "adjustments"), (_CPU, "twins.adjustments")):
        step = make_choosing(vocab_size, device, seed=2)
        num_rows = len(step.logits)
        words = need("packed_adjustments").pack_adjustments(_adjusted_rows(vocab_size), vocab_size)
        adjusted = torch.zeros_like(step.logits)
        packed = torch.from_numpy(words).to(device)
        tensors = (step.logits, adjusted, packed, step.buffers, step.state)
        need(module).adjust(*tensors, vocab_size, num_rows, step.workspace)
        results.append((_finite(adjusted.cpu()), step.tensor("is_adjusted").cpu()))
    yield from zip(*results, strict=True)


def _adjusted_rows(vocab_size: int) -> list[tuple[int, SampledRow]]:
    """Return what changes rows 1 to 4; the others are left alone."""
    seen = tuple(range(0, vocab_size, 7))
    counts = tuple((token, 1 + token % 3) for token in seen[:40])
    mask = bytes(0xA5 for _ in range(4 * -(-vocab_size // 32)))
    wishes: tuple[tuple[dict[str, object], RowHistory | None], ...] = (
        (
            {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.3},
            RowHistory(seen_token_ids=seen, answer_counts=counts),
        ),
        ({"logit_bias": {7: 3.0, 9: -100.0}}, None),
        ({"allowed_token_ids": frozenset(seen)}, RowHistory(banned_token_ids=seen[:3])),
        ({"temperature": 0.0}, RowHistory(token_bitmask=mask)),
    )
    return [
        (number, SampledRow(SamplingParams(**params), 0, 0, 5, history))  # type: ignore[arg-type]
        for number, (params, history) in enumerate(wishes, 1)
    ]


def logprob_cases(setting: Setting) -> Iterator[Case]:
    """Yield logprobs of the chosen and of the likeliest tokens."""
    for vocab_size in (5000,) if setting.rehearse else (50_257, 151_936):
        for tops in (5,) if setting.rehearse else (0, 5, 20):
            yield Case(f"{tops} of {vocab_size}", partial(_logprob_pairs, setting, vocab_size, tops), 1e-5)


def _logprob_pairs(setting: Setting, vocab_size: int, tops: int) -> Iterator[Pair]:
    results = []
    for device, module in ((setting.device, "top_logprobs"), (_CPU, "twins.top_logprobs")):
        step = make_choosing(vocab_size, device, seed=1)
        num_rows = len(step.logits)
        step.buffers.results[:num_rows] = 7 * torch.arange(num_rows, dtype=torch.int32)
        values, chosen = torch.zeros(num_rows, tops, device=device), torch.zeros(num_rows, device=device)
        ids = torch.zeros(num_rows, tops, dtype=torch.int32, device=device)
        outs = (values, ids, chosen)
        need(module).top_logprobs(step.logits, step.buffers, num_rows, tops, *outs, step.workspace)
        results.append([out.cpu() for out in outs])
    yield from zip(*results, strict=True)


def acceptance_cases(setting: Setting) -> Iterator[Case]:
    """Yield verifications of drafts of which some are right."""
    for length in (1, 4, 16):
        yield Case(f"drafts of {length}", partial(_acceptance_pairs, setting, length), 0.0)


def _acceptance_pairs(setting: Setting, length: int) -> Iterator[Pair]:
    results = []
    for device, module in ((setting.device, "acceptance"), (_CPU, "twins.acceptance")):
        state, buffers, shape = _drafted(length, device)
        accepted = torch.zeros(shape.num_tiles, dtype=torch.int32, device=device)
        need(module).accept_drafts(buffers, state, shape, accepted)
        written = (accepted, state.integers(columns.LAST_TOKEN), state.integers(columns.NEXT_POSITION))
        results.append([tensor.cpu() for tensor in written])
    yield from zip(*results, strict=True)


def _drafted(
    length: int, device: torch.device, num_requests: int = 9
) -> tuple[RequestState, StepBuffers, StepShape]:
    """Lay out a token and its drafts for each request; tokens are 0 or 1, so half of them are right."""
    per_tile = length + 1
    num_tokens = num_requests * per_tile
    shape = StepShape(num_tokens, num_requests, per_tile, num_tokens)
    state = RequestState(max_requests=num_requests, max_blocks=1, null_block=0, device=device)
    buffers = make_buffers(shape, device)
    numbers = torch.arange(num_tokens, dtype=torch.int32)
    generator = torch.Generator().manual_seed(length)
    tokens, chosen = (torch.randint(0, 2, (num_tokens,), generator=generator).int() for _ in range(2))
    for target, values in (
        (buffers.token_ids, tokens),
        (buffers.token_requests, numbers // per_tile),
        (buffers.row_tokens, numbers),
        (buffers.row_requests, numbers // per_tile),
        (buffers.row_positions, 50 + numbers),
        (buffers.results, chosen),
        (buffers.tile_starts, numbers[::per_tile]),
        (buffers.tile_lengths, torch.full((num_requests,), per_tile, dtype=torch.int32)),
    ):
        target[: len(values)] = values
    buffers.faults[per_tile + 1] = 1
    return state, buffers, shape
