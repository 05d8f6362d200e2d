"""CudaRunner: one model on the device, from packed steps to chosen tokens, without a look at either."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.execution.cuda.device import Device
from engine.execution.cuda.graphs import Graphs
from engine.execution.cuda.packing import PackedStep, Span, fill_inbox, null_step, pack
from engine.execution.cuda.request_table import NO_UPDATES, RequestTable, Updates
from engine.execution.cuda.results import MAX_DEVICE_LOGPROBS, LogprobBuffers
from engine.execution.cuda.shapes import ShapeRules, is_worth_capturing
from engine.interface.sampled_row import SampledRow
from engine.interface.sampling_params import SamplingParams
from engine.kernels.cuda.cuda_decoder import CudaDecoder, HiddenBuffers
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.packed_adjustments import pack_adjustments
from engine.kernels.cuda.paged_kv_storage import PagedKVStorage
from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import INBOX_HEADER, StepBuffers, StepShape
from engine.kernels.cuda.workspace import Workspaces

_ADJUSTED = SampledRow(SamplingParams(logit_bias={0: 0.0}), 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class RunnerSize:
    """What a runner has room for."""

    max_requests: int
    max_blocks: int  # of a request
    max_tokens: int  # of a step
    max_step_requests: int
    max_rows: int  # of a step
    num_inboxes: int  # steps whose input may be under way
    max_graphs: int  # beside those of decode steps


class CudaRunner:
    """A model, its keys and values, and the tensors between them and the host.

    Work is launched in the order of the device's stream; nothing here waits for it.
    """

    def __init__(
        self,
        decoder: CudaDecoder,
        kv_storage: PagedKVStorage,
        kernels: Kernels,
        device: Device,
        *,
        size: RunnerSize,
        vocab_size: int,
        is_captured: bool = True,
    ) -> None:
        self.decoder, self.kv_storage, self.device = decoder, kv_storage, device
        self.rules = ShapeRules(size.max_tokens, size.max_step_requests, size.max_rows)
        self.state, self.buffers = _tables(size, self.rules, kv_storage, device)
        self.hidden = HiddenBuffers(
            decoder.config,
            max_tokens=self.rules.max_padded_tokens,
            max_rows=self.rules.max_padded_rows,
            dtype=decoder.dtype,
            device=device.device,
        )
        self.workspaces = Workspaces.sized_for(
            decoder.config,
            decoder.projections,
            [*self.rules.decode_shapes, *self.rules.short_shapes],
            max_tokens=self.rules.max_padded_tokens,
            max_rows=self.rules.max_padded_rows,
            max_positions=size.max_blocks * kv_storage.block_size,
            vocab_size=vocab_size,
            dtype=decoder.dtype,
            device=device.device,
        )
        self.table = RequestTable(max_requests=size.max_requests, width=self.state.width)
        self._kernels, self._vocab_size = kernels, vocab_size
        self._num_accepted = torch.zeros(self.buffers.max_tiles, dtype=torch.int32, device=device.device)
        self._logprobs = LogprobBuffers.on_device(self.rules.max_padded_rows, device.device)
        self._inboxes = [device.host_buffer(len(self.buffers.inbox)) for _ in range(size.num_inboxes)]
        self._next_inbox = 0
        self._models = Graphs(device, self._run_model, limit=size.max_graphs, is_enabled=is_captured)
        self._choices = Graphs(device, self._choose, limit=size.max_graphs, is_enabled=is_captured)

    @torch.inference_mode()
    def prepare(self) -> None:
        """Run what serving will run, so that every kernel is compiled, and capture the decode steps."""
        self.run_largest()
        for shape in self.rules.short_shapes:
            self._rehearse(shape)
        self.fetch_logprobs(1, None)
        self.adjust([(0, _ADJUSTED)], self.rules.decode_shapes[-1])
        self.send(null_step(self.rules.decode_shapes[0], self.state.null_request), NO_UPDATES)
        self._models.prepare(self.rules.decode_shapes)
        self._choices.prepare(self.rules.decode_shapes)
        self.device.record().synchronize()

    @torch.inference_mode()
    def run_largest(self) -> None:
        """Run the steps that need most memory, with nothing in them."""
        for shape in (self.rules.largest, self.rules.decode_shapes[0]):
            self._rehearse(shape)
        self.device.record().synchronize()

    def _rehearse(self, shape: StepShape) -> None:
        self.send(null_step(shape, self.state.null_request), NO_UPDATES)
        self.launch_step(shape)
        self.device.record().synchronize()  # the inbox is free again

    def send(self, step: PackedStep | None, updates: Updates) -> None:
        """Send a step and updates; None: the requests of the last decode step go on."""
        if step is None and not len(updates.offsets):
            return
        inbox = self._inboxes[self._next_inbox]
        self._next_inbox = (self._next_inbox + 1) % len(self._inboxes)
        count = fill_inbox(inbox.numpy(), step, updates)
        self.device.send(inbox[:count], self.buffers.inbox[:count])

    def pack(self, spans: Sequence[Span]) -> PackedStep:
        """Lay out a step and send it."""
        step = pack(spans, self.table, self.rules)
        self.send(step, self.table.take_updates())
        return step

    def run_model(self, shape: StepShape) -> None:
        """Launch the step that was sent, up to the logits of its rows."""
        self._models.run(shape, may_capture=is_worth_capturing(shape))

    def choose(self, shape: StepShape) -> None:
        """Launch the choice of its tokens, which stand in the results then."""
        self._choices.run(shape)

    def adjust(self, rows: Sequence[tuple[int, SampledRow]], shape: StepShape) -> None:
        """Launch what the parameters of these rows, each with its number, do to their logits."""
        if rows:
            packed = self.device.upload(pack_adjustments(rows, self._vocab_size))
            logits, sampling = self.hidden.logits[: shape.num_rows], self.workspaces.sampling
            self._kernels.adjust(
                logits, logits, packed, self.buffers, self.state, self._vocab_size, shape.num_rows, sampling
            )

    def logits(self, num_rows: int) -> Tensor:
        """Return the logits of the last step, float32 [num_rows, vocab_size]."""
        return self.hidden.logits[:num_rows]

    def clear(self) -> None:
        """Forget what the device knows of requests: a step failed on its way."""
        self.table = RequestTable(max_requests=self.state.null_request, width=self.state.width)
        self.buffers.inbox[:INBOX_HEADER].zero_()

    def launch_step(self, shape: StepShape) -> None:
        """Launch a whole step kernel by kernel, as part of a larger graph."""
        self._run_model(shape)
        self._choose(shape)

    def copy_tokens(self, num_rows: int, target: Tensor) -> None:
        """Copy the chosen tokens of the first rows to int32 [>= num_rows] on the device."""
        self._kernels.copy(self.buffers.results[:num_rows], target[:num_rows])

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to new float32 [num_rows, vocab_size]."""
        logits = torch.empty(len(hidden), self.decoder.config.vocab_size, device=hidden.device)
        self.decoder.compute_logits(hidden, logits, self.workspaces)
        return logits

    def normalize(self, hidden: Tensor) -> Tensor:
        """Apply the last norm to rows of hidden states: new T [num_rows, hidden_size]."""
        out = torch.empty_like(hidden)
        self._kernels.normalize(hidden, self.decoder.norm, out)
        return out

    def fetch_logprobs(self, num_rows: int, target: LogprobBuffers | None) -> None:
        """Find the likeliest tokens of the last step's rows, and have them copied to host memory if given."""
        source, num_top = self._logprobs.first(num_rows), MAX_DEVICE_LOGPROBS
        logits = self.hidden.logits[:num_rows]
        self._kernels.top_logprobs(logits, self.buffers, num_rows, num_top, *source, self.workspaces.sampling)
        if target is None:
            return
        for mine, theirs in zip(source, target.first(num_rows), strict=True):
            self.device.receive(mine, theirs)

    def _run_model(self, shape: StepShape) -> None:
        begin = self._kernels.begin_decode if shape.tile_tokens == 1 else self._kernels.begin_step
        begin(self.buffers, self.state, shape)
        self.decoder.forward(
            shape,
            buffers=self.buffers,
            state=self.state,
            kv_storage=self.kv_storage,
            hidden=self.hidden,
            workspaces=self.workspaces,
        )

    def _choose(self, shape: StepShape) -> None:
        if shape.num_rows:
            logits = self.hidden.logits[: shape.num_rows]
            self._kernels.choose(
                logits, self.buffers, self.state, self._vocab_size, shape.num_rows, self.workspaces.sampling
            )
            if shape.tile_tokens > 1:
                self._kernels.accept_drafts(self.buffers, self.state, shape, self._num_accepted)
        self._kernels.end_step(self.buffers, self.state, shape)


def _tables(
    size: RunnerSize, rules: ShapeRules, kv_storage: PagedKVStorage, device: Device
) -> tuple[RequestState, StepBuffers]:
    """Return the table of requests, and the buffers through which the host changes it."""
    state = RequestState(
        max_requests=size.max_requests,
        max_blocks=size.max_blocks,
        null_block=kv_storage.null_block,
        device=device.device,
    )
    buffers = StepBuffers(
        max_tokens=rules.max_padded_tokens,
        max_tiles=rules.max_padded_tokens,
        max_rows=rules.max_padded_rows,
        max_updates=state.table.numel(),
        device=device.device,
    )
    return state, buffers
