"""Backend: which kernels run a model, and the executor that they make."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.checkpoint.model_config import ModelConfig
from engine.core.executor import Executor
from engine.execution.draft_model import DraftModel
from engine.execution.fused_executor import FusedExecutor, FusedModel
from engine.execution.torch_executor import TorchExecutor, TorchModel
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.kernels.cpu.draft_chain import FusedDraftChain
from engine.kernels.cpu.fused_decoder import FusedDecoder, why_not_fused
from engine.kernels.cpu.library import KernelContext, KVKind, RowsFormat, load_library
from engine.kernels.cpu.tiled_kv_storage import TILE_POSITIONS, TiledKVStorage, tiled_kv_bytes_per_block
from engine.kernels.cpu.token_bitmask import apply_token_bitmask
from engine.kernels.cpu.token_chooser import FusedTokenChooser
from engine.kv_cache.persistence import BlockStorage
from engine.loading.machine import choose_dtype
from engine.loading.model_source import (
    ExecutorShape,
    ModelSource,
    Profile,
    plain_kv_bytes_per_block,
    weight_errors,
)
from engine.loading.numerics import torch_numerics
from engine.model.decoder import Decoder
from engine.model.input_buffers import InputBuffers
from engine.model.kv_storage import KVStorage
from engine.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")


class ModelExecutor(Executor, Protocol):
    """An executor whose keys and values can be copied out and in."""

    @property
    def block_storage(self) -> BlockStorage:
        """The memory of the target's blocks."""


class LoadedModels(Protocol):
    """A model, and a draft model if there is one, that still lack room for keys and values."""

    def profile(self, shape: ExecutorShape) -> Profile:
        """Return what is promised of the models' bits here, and what steps need; num_blocks may be any."""

    def build_executor(self, shape: ExecutorShape) -> ModelExecutor:
        """Make that room, and return what runs batches."""


class Backend(Protocol):
    """One way to run models; a draft model runs as its target does."""

    name: str  # "torch", or the kernels' instruction set
    dtype_name: str  # of the weights, for people
    kv_dtype_name: str

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""

    def load(self, target: ModelSource, draft: ModelSource | None) -> LoadedModels:
        """Load the models, all of whose weights must be used; raises ConfigError if memory is short."""


class TorchBackend:
    """Plain torch on any device: the reference."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, steps_ahead: int = 0) -> None:
        self.name = "torch"
        self.device, self.dtype, self.steps_ahead = device, dtype, steps_ahead
        self.dtype_name = self.kv_dtype_name = str(dtype).removeprefix("torch.")

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""
        return plain_kv_bytes_per_block(config, block_size, self.dtype)

    def load(self, target: ModelSource, draft: ModelSource | None) -> "TorchModels":
        """Load the models, all of whose weights must be used; raises ConfigError if memory is short."""
        return TorchModels(self, self._load(target), None if draft is None else self._load(draft))

    def _load(self, source: ModelSource) -> Decoder:
        with weight_errors(source, self.device), torch.inference_mode():
            decoder = Decoder(source.config, source.weights, max_positions=source.max_positions)
        source.weights.finish()
        return decoder


@dataclass(frozen=True)
class TorchModels:
    """Models in plain torch."""

    backend: TorchBackend
    target: Decoder
    draft: Decoder | None

    def profile(self, shape: ExecutorShape) -> Profile:  # noqa: ARG002 - steps take their memory as they run
        """Return what is promised of the models' bits here."""
        return Profile(torch_numerics(self.backend.device))

    def build_executor(self, shape: ExecutorShape) -> TorchExecutor:
        """Make room for keys and values, and return what runs batches."""
        sampler, draft_model = Sampler(vocab_size=shape.vocab_size), None
        if self.draft is not None:
            draft_model = DraftModel(
                self._bind(self.draft, shape),
                sampler,
                max_positions=self.draft.max_positions,
                block_size=shape.block_size,
                device=self.backend.device,
            )
        return TorchExecutor(
            self._bind(self.target, shape),
            sampler,
            block_size=shape.block_size,
            device=self.backend.device,
            buffers=InputBuffers(
                max_tokens=shape.max_num_batched_tokens,
                max_spans=shape.max_num_seqs,
                max_blocks=-(-shape.max_model_len // shape.block_size),
                device=self.backend.device,
            ),
            draft_model=draft_model,
            steps_ahead=self.backend.steps_ahead,
        )

    def _bind(self, model: Decoder, shape: ExecutorShape) -> TorchModel:
        kv_storage = KVStorage(
            num_layers=model.config.num_layers,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            num_kv_heads=model.config.num_kv_heads,
            head_dim=model.config.head_dim,
            dtype=self.backend.dtype,
            device=self.backend.device,
        )
        return TorchModel(model, kv_storage)


class FusedBackend:
    """The CPU kernels: one call a step.

    With dtype "auto" weights stay as the checkpoint holds them, which for blocks of 4 and 8 bits means
    activations in 8 bits too; "float32" and "bfloat16" turn everything into that.
    """

    def __init__(
        self, context: KernelContext, *, dtype: str, kv_cache_dtype: str, quantization: str | None
    ) -> None:
        self.context = context
        self.name = context.instruction_set
        self._plain = RowsFormat.F32 if dtype == "float32" else RowsFormat.BF16
        self._keeps_blocks = dtype == "auto"
        self._quantization = quantization
        self.dtype_name = quantization or ("as stored" if dtype == "auto" else dtype)
        kinds = {"int8": KVKind.INT8, "float32": KVKind.F32, "bfloat16": KVKind.BF16}
        self.kv_dtype_name = kv_cache_dtype
        if kv_cache_dtype == "auto":
            self.kv_dtype_name = "float32" if dtype == "float32" else "bfloat16"
        self.kv_kind = kinds[self.kv_dtype_name]

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""
        return tiled_kv_bytes_per_block(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            kind=self.kv_kind,
        )

    def load(self, target: ModelSource, draft: ModelSource | None) -> "FusedModels":
        """Load the models, all of whose weights must be used; raises ConfigError if memory is short."""
        return FusedModels(self, self._load(target), None if draft is None else self._load(draft))

    def _load(self, source: ModelSource) -> FusedDecoder:
        with weight_errors(source, _CPU):
            decoder = FusedDecoder(
                source.config,
                source.weights,
                context=self.context,
                max_positions=source.max_positions,
                plain=self._plain,
                keeps_blocks=self._keeps_blocks,
                quantization=self._quantization,
            )
        source.weights.finish()
        return decoder


@dataclass(frozen=True)
class FusedModels:
    """Models in the CPU kernels."""

    backend: FusedBackend
    target: FusedDecoder
    draft: FusedDecoder | None

    def profile(self, shape: ExecutorShape) -> Profile:  # noqa: ARG002 - steps take their memory as they run
        """Return what is promised of the models' bits here."""
        return Profile(torch_numerics(_CPU))

    def build_executor(self, shape: ExecutorShape) -> FusedExecutor:
        """Make room for keys and values, and return what runs batches."""
        context, draft_model = self.backend.context, None
        sampler = Sampler(
            vocab_size=shape.vocab_size,
            chooser=FusedTokenChooser(context),
            apply_bitmask=apply_token_bitmask,
        )
        if self.draft is not None:
            model = self._bind(self.draft, shape)
            draft_model = DraftModel(
                model,
                sampler,
                max_positions=self.draft.max_positions,
                block_size=shape.block_size,
                device=_CPU,
                chain=FusedDraftChain(context, model.decoder, model.kv_storage, vocab_size=shape.vocab_size),
            )
        return FusedExecutor(
            context,
            self._bind(self.target, shape),
            sampler,
            block_size=shape.block_size,
            draft_model=draft_model,
        )

    def _bind(self, decoder: FusedDecoder, shape: ExecutorShape) -> FusedModel:
        kv_storage = TiledKVStorage(
            num_layers=decoder.config.num_layers,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            num_kv_heads=decoder.config.num_kv_heads,
            head_dim=decoder.config.head_dim,
            kind=self.backend.kv_kind,
        )
        return FusedModel(decoder, kv_storage)


def choose_backend(
    config: EngineConfig, models: Sequence[ModelConfig], *, device: torch.device, num_threads: int
) -> Backend:
    """Return the device's kernels where they can run all models, unless told otherwise.

    Raises ConfigError.
    """
    reason = _why_no_kernels(config, models, device)
    if reason is None and device.type == "cuda":
        return _cuda_backend(config, device)
    if reason is None:
        if config.steps_ahead:
            raise ConfigError(f"steps_ahead {config.steps_ahead} needs kernels 'torch'")
        return FusedBackend(
            KernelContext(num_threads=num_threads),
            dtype=config.dtype,
            kv_cache_dtype=config.kv_cache_dtype,
            quantization=config.quantization,
        )
    if config.kernels == "fused":
        raise ConfigError(f"kernels 'fused' cannot run this model here: {reason}")
    _refuse_what_needs_kernels(config, reason)
    if config.kernels == "auto":
        logger.warning("the kernels are not used, plain torch is several times slower: %s", reason)
    dtype = choose_dtype(config.dtype, device)
    return TorchBackend(device, dtype, steps_ahead=config.steps_ahead or 0)


def _cuda_backend(config: EngineConfig, device: torch.device) -> Backend:
    from engine.execution.cuda.device import CudaDevice
    from engine.kernels.cuda.triton_kernels import triton_kernels  # needs Triton
    from engine.loading.cuda_backend import DEFAULT_STEPS_AHEAD, CudaBackend

    _refuse_what_needs_kernels(config, "the device is cuda")
    steps_ahead = DEFAULT_STEPS_AHEAD if config.steps_ahead is None else config.steps_ahead
    return CudaBackend(
        CudaDevice(device),
        choose_dtype(config.dtype, device),
        triton_kernels(),
        steps_ahead=steps_ahead,
        keeps_blocks=config.dtype == "auto",
        is_captured=not config.enforce_eager,
        is_checked=config.debug_kernels,
    )


def _refuse_what_needs_kernels(config: EngineConfig, reason: str) -> None:
    """Refuse what only the CPU kernels do."""
    for name, default in (("kv_cache_dtype", "auto"), ("quantization", None)):
        if getattr(config, name) != default:
            raise ConfigError(f"{name} {getattr(config, name)!r} needs the CPU kernels: {reason}")


def _why_no_kernels(config: EngineConfig, models: Sequence[ModelConfig], device: torch.device) -> str | None:
    if config.kernels == "torch":
        return "kernels 'torch' was asked for"
    if device.type == "cuda":
        from engine.loading.cuda_backend import why_not_triton

        return why_not_triton(config, models, device)
    if load_library() is None:
        return "they were not built; install a C++ compiler and then draftline again"
    if config.dtype == "float16":
        return "they have no float16; use bfloat16"
    if config.block_size % TILE_POSITIONS:
        return f"block_size must be a multiple of {TILE_POSITIONS}, got {config.block_size}"
    return next(filter(None, map(why_not_fused, models)), None)
