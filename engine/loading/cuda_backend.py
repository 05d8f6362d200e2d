"""CudaBackend: the Triton kernels on a CUDA card, in captured graphs."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.execution.cuda.checked_kernels import checked
from engine.execution.cuda.device import Device
from engine.execution.cuda.draft_model import CudaDraftModel
from engine.execution.cuda.executor import CudaExecutor
from engine.execution.cuda.runner import CudaRunner, RunnerSize
from engine.interface.config import EngineConfig
from engine.interface.speculation import MAX_DRAFT_TOKENS
from engine.kernels.cuda.attention_numerics import check_attention
from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.cuda_decoder import CudaDecoder
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.paged_kv_storage import PagedKVStorage
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.loading.kv_memory import measure_gpu_memory
from engine.loading.memory_errors import LoadStage, stage_errors
from engine.loading.model_source import (
    ExecutorShape,
    ModelSource,
    Profile,
    plain_kv_bytes_per_block,
    weight_errors,
)
from engine.loading.numerics import BITWISE, Numerics, torch_numerics
from engine.loading.speculation import MAX_MEASURED_SIZE
from engine.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

DEFAULT_STEPS_AHEAD = 1

_MAX_HEAD_DIM = 256
_LEAST_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies
_MAX_GRAPHS = 64  # beside those of decode steps
_CHECKED_ROWS = 2048
_DRAFT_INBOXES = 4  # a pass and the decode steps after it are sent before the device is waited for


def why_not_triton(config: EngineConfig, models: Sequence[ModelConfig], device: torch.device) -> str | None:
    """Say why the Triton kernels cannot run these models here; None if they can."""
    try:
        import triton  # noqa: F401 - absent where torch was built without CUDA
    except ImportError:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return "the card is older than compute capability 8.0"
    if config.block_size & (config.block_size - 1):
        return f"block_size must be a power of two, got {config.block_size}"
    longest = max(model.head_dim for model in models)
    if longest > _MAX_HEAD_DIM:
        return f"heads of {longest} dimensions are longer than {_MAX_HEAD_DIM}"
    return None


class CudaBackend:
    """Models in the kernels of engine/kernels/cuda, or in their twins: `kernels` says which.

    `keeps_blocks`: matrices in blocks of GGUF stay so, and are multiplied to the bits of widened ones.
    """

    def __init__(
        self,
        device: Device,
        dtype: torch.dtype,
        kernels: Kernels,
        *,
        steps_ahead: int,
        keeps_blocks: bool = False,
        is_captured: bool = True,
        is_checked: bool = False,
    ) -> None:
        self.name = "triton"
        self.device, self.dtype, self.steps_ahead = device, dtype, steps_ahead
        self.kernels = checked(kernels, device) if is_checked else kernels
        self.keeps_blocks, self.is_captured = keeps_blocks, is_captured and not is_checked
        self.dtype_name = self.kv_dtype_name = str(dtype).removeprefix("torch.")

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""
        return plain_kv_bytes_per_block(config, block_size, self.dtype)

    def load(self, target: ModelSource, draft: ModelSource | None) -> "CudaModels":
        """Load the models, all of whose weights must be used; raises ConfigError if memory is short."""
        return CudaModels(self, self._load(target), None if draft is None else self._load(draft))

    def _load(self, source: ModelSource) -> CudaDecoder:
        with weight_errors(source, self.device.device), torch.inference_mode():
            decoder = CudaDecoder(
                source.config,
                source.weights,
                max_positions=source.max_positions,
                kernels=self.kernels,
                keeps_blocks=self.keeps_blocks,
            )
        source.weights.finish()
        return decoder


@dataclass(frozen=True)
class CudaModels:
    """Models in the kernels."""

    backend: CudaBackend
    target: CudaDecoder
    draft: CudaDecoder | None

    def profile(self, shape: ExecutorShape) -> Profile:
        """Compare bits on the card, run the largest steps, and measure what that took."""
        device = self.backend.device.device
        if device.type != "cuda":
            return Profile(torch_numerics(device))
        with torch.inference_mode():
            numerics = self._check_numerics(shape.block_size)
        before = measure_gpu_memory(device)
        few_blocks = replace(shape, num_blocks=-(-shape.max_model_len // shape.block_size))
        executor = self._build(few_blocks)
        executor.runner.run_largest()
        num_bytes = before.free - torch.cuda.mem_get_info(device)[0]
        num_bytes -= executor.runner.kv_storage.num_bytes
        del executor
        gc.collect()
        measure_gpu_memory(device)  # gives back what was taken
        return Profile(numerics, num_bytes)

    def build_executor(self, shape: ExecutorShape) -> CudaExecutor:
        """Make room for keys and values, capture the decode steps, and return what runs batches."""
        executor = self._build(shape)
        with stage_errors(LoadStage.CAPTURED_STEPS, self.backend.device.device):
            executor.prepare()
        return executor

    def _build(self, shape: ExecutorShape) -> CudaExecutor:
        sampler, draft_model = Sampler(vocab_size=shape.vocab_size), None
        if self.draft is not None:
            draft_model = CudaDraftModel(
                self._runner(self.draft, shape, num_inboxes=_DRAFT_INBOXES),
                sampler,
                max_graphs=_MAX_GRAPHS,
                is_captured=self.backend.is_captured,
            )
        runner = self._runner(self.target, shape, num_inboxes=self.backend.steps_ahead + 1)
        return CudaExecutor(runner, sampler, steps_ahead=self.backend.steps_ahead, draft_model=draft_model)

    def _runner(self, decoder: CudaDecoder, shape: ExecutorShape, *, num_inboxes: int) -> CudaRunner:
        kv_storage = PagedKVStorage(
            num_layers=decoder.config.num_layers,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            num_kv_heads=decoder.config.num_kv_heads,
            head_dim=decoder.config.head_dim,
            dtype=self.backend.dtype,
            device=self.backend.device.device,
        )
        num_requests = max(shape.max_num_seqs, MAX_MEASURED_SIZE)  # so many are timed at the start
        num_tokens = max(shape.max_num_batched_tokens, num_requests)
        size = RunnerSize(
            max_requests=2 * num_requests,
            max_blocks=-(-shape.max_model_len // shape.block_size),
            max_tokens=num_tokens,
            max_step_requests=num_requests,
            max_rows=min(num_tokens, num_requests * (1 + MAX_DRAFT_TOKENS)),
            num_inboxes=num_inboxes,
            max_graphs=_MAX_GRAPHS,
        )
        return CudaRunner(
            decoder,
            kv_storage,
            self.backend.kernels,
            self.backend.device,
            size=size,
            vocab_size=shape.vocab_size,
            is_captured=self.backend.is_captured,
        )

    def _check_numerics(self, block_size: int) -> Numerics:
        """Find out which layers cuBLASLt may multiply, and whether a row's bits hold on this card."""
        from engine.kernels.cuda.numerics import check_numerics

        has_library = _forbid_split_k()
        reasons: list[str] = []
        for decoder in filter(None, (self.target, self.draft)):
            reasons += self._check_attention(decoder, block_size)
            plain = [one for one in decoder.projections if isinstance(one, Projection)]
            if plain:
                workspace = ProjectionWorkspace(_CHECKED_ROWS, plain, self.backend.device.device)
                report = check_numerics(plain, workspace)
                if has_library:
                    decoder.may_use_library = report.may_use_library
                reasons += report.reasons
        return Numerics("tolerance", "; ".join(reasons)) if reasons else BITWISE

    def _check_attention(self, decoder: CudaDecoder, block_size: int) -> list[str]:
        config = decoder.config
        heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, decoder.dtype)
        attend, device = self.backend.kernels.attend, self.backend.device.device
        return check_attention(attend, heads, block_size=block_size, device=device)


def _forbid_split_k() -> bool:
    """Have cuBLASLt add as the kernels do; False where this torch cannot: Triton multiplies everything."""
    from engine.kernels.cuda.blas import forbid_split_k

    try:
        forbid_split_k()
    except (RuntimeError, TypeError) as error:
        logger.warning("cuBLASLt is not used: this torch cannot forbid it to split sums: %s", error)
        return False
    return True
