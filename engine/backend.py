"""Which code runs the model: plain torch or the fused CPU kernels; chosen here and nowhere else."""

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from engine.config import EngineConfig, ModelConfig
from engine.errors import ConfigError
from engine.kernels.cpu.draft_chain import FusedDraftChain
from engine.kernels.cpu.fused_decoder import FusedDecoder, why_not_fused
from engine.kernels.cpu.library import KernelContext, KVKind, RowsFormat, load_library
from engine.kernels.cpu.tiled_kv_storage import TILE_POSITIONS, TiledKVStorage, tiled_kv_bytes_per_block
from engine.kernels.cpu.token_chooser import FusedTokenChooser
from engine.kernels.cpu.token_step import FusedTokenStep
from engine.kv_cache.kv_storage import KVMemory, KVStorage, kv_bytes_per_block
from engine.machine import choose_dtype
from engine.model.registry import Model, build_model
from engine.model.weights import Weights
from engine.model_runner import TokenStep
from engine.sampling.sampler import Sampler
from engine.speculative.draft_model import DraftChain

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """How models are built and where their keys and values live; a draft model shares its target's."""

    name: str  # "torch", or the kernels' instruction set
    dtype_name: str  # of the weights, for people
    kv_dtype_name: str

    def build_model(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> Model:
        """Build the model from its weights, all of which must be used."""

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""

    def build_kv_storage(self, config: ModelConfig, *, num_blocks: int, block_size: int) -> KVMemory:
        """Return the storage that models of this backend take."""

    def build_sampler(self, vocab_size: int) -> Sampler:
        """Return the sampler for a vocabulary."""

    def build_token_step(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> TokenStep | None:
        """Return a faster way through a whole step with a model of this backend, if there is one."""

    def build_draft_chain(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> DraftChain | None:
        """Return a faster way to draft several tokens with a model of this backend, if there is one."""


class TorchBackend:
    """Plain torch on any device: the reference."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.name = "torch"
        self.device, self.dtype = device, dtype
        self.dtype_name = self.kv_dtype_name = str(dtype).removeprefix("torch.")

    def build_model(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> Model:
        """Build the model from its weights, all of which must be used."""
        with torch.inference_mode():
            return build_model(config, weights, max_positions=max_positions)

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""
        return kv_bytes_per_block(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            dtype=self.dtype,
        )

    def build_kv_storage(self, config: ModelConfig, *, num_blocks: int, block_size: int) -> KVStorage:
        """Return tensors of keys and values."""
        return KVStorage(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def build_sampler(self, vocab_size: int) -> Sampler:
        """Return the sampler in plain torch."""
        return Sampler(vocab_size=vocab_size)

    def build_token_step(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> None:  # noqa: ARG002
        """Return nothing: logits are tensors here."""
        return

    def build_draft_chain(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> None:  # noqa: ARG002
        """Return nothing: tokens are drafted one by one."""
        return


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
        self._kv_kind = kinds[self.kv_dtype_name]

    def build_model(self, config: ModelConfig, weights: Weights, *, max_positions: int) -> Model:
        """Build the model from its weights, all of which must be used."""
        model = FusedDecoder(
            config,
            weights,
            context=self.context,
            max_positions=max_positions,
            plain=self._plain,
            keeps_blocks=self._keeps_blocks,
            quantization=self._quantization,
        )
        weights.finish()
        return model

    def kv_bytes_per_block(self, config: ModelConfig, block_size: int) -> int:
        """Return the bytes that one block takes over all layers."""
        return tiled_kv_bytes_per_block(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            kind=self._kv_kind,
        )

    def build_kv_storage(self, config: ModelConfig, *, num_blocks: int, block_size: int) -> TiledKVStorage:
        """Return tiles of keys and values."""
        return TiledKVStorage(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kind=self._kv_kind,
        )

    def build_sampler(self, vocab_size: int) -> Sampler:
        """Return the sampler that leaves filters and noise to the kernels."""
        return Sampler(vocab_size=vocab_size, chooser=FusedTokenChooser(self.context))

    def build_token_step(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> FusedTokenStep:
        """Return a step from tokens to tokens in one call."""
        assert isinstance(model, FusedDecoder)
        assert isinstance(kv_storage, TiledKVStorage)
        return FusedTokenStep(self.context, model, kv_storage, vocab_size=vocab_size)

    def build_draft_chain(self, model: Model, kv_storage: KVMemory, vocab_size: int) -> FusedDraftChain:
        """Return the draft of several tokens in one call."""
        assert isinstance(model, FusedDecoder)
        assert isinstance(kv_storage, TiledKVStorage)
        return FusedDraftChain(self.context, model, kv_storage, vocab_size=vocab_size)


def choose_backend(
    config: EngineConfig, models: Sequence[ModelConfig], *, device: torch.device, num_threads: int
) -> Backend:
    """Return the fused kernels where they can run all models, unless told otherwise; raises ConfigError."""
    reason = _why_not_fused(config, models, device)
    if reason is None:
        return FusedBackend(
            KernelContext(num_threads=num_threads),
            dtype=config.dtype,
            kv_cache_dtype=config.kv_cache_dtype,
            quantization=config.quantization,
        )
    if config.kernels == "fused":
        raise ConfigError(f"kernels 'fused' cannot run this model here: {reason}")
    for name, default in (("kv_cache_dtype", "auto"), ("quantization", None)):
        if getattr(config, name) != default:
            raise ConfigError(f"{name} {getattr(config, name)!r} needs the CPU kernels: {reason}")
    if config.kernels == "auto" and device.type == "cpu":
        logger.warning("the CPU kernels are not used, plain torch is several times slower: %s", reason)
    return TorchBackend(device, choose_dtype(config.dtype, device))


def _why_not_fused(config: EngineConfig, models: Sequence[ModelConfig], device: torch.device) -> str | None:
    if config.kernels == "torch":
        return "kernels 'torch' was asked for"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if load_library() is None:
        return "they were not built; install a C++ compiler and then draftline again"
    if config.dtype == "float16":
        return "they have no float16; use bfloat16"
    if config.block_size % TILE_POSITIONS:
        return f"block_size must be a multiple of {TILE_POSITIONS}, got {config.block_size}"
    return next(filter(None, map(why_not_fused, models)), None)
