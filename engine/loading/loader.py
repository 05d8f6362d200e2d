"""From a checkpoint and a configuration to a running engine: every automatic choice is made here."""

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_process import EngineProcess
from engine.bridge.engine_thread import EngineThread
from engine.bridge.wire import StartEngine
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.vocabulary import token_bytes
from engine.core.engine import Engine
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.interface.info import EngineInfo
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.loading.backend import Backend, ModelExecutor, choose_backend
from engine.loading.kv_memory import (
    GPU_MARGIN_BYTES,
    GPUMemory,
    available_memory,
    check_kv_cache_fits,
    choose_num_blocks,
    default_kv_cache_memory,
    kv_cache_bytes_on_gpu,
    measure_gpu_memory,
)
from engine.loading.machine import (
    choose_device,
    choose_dtype,
    choose_num_threads,
    device_name,
    keep_freed_memory,
)
from engine.loading.memory_errors import LoadStage, memory_errors, stage_errors
from engine.loading.model_source import ExecutorShape, ModelSource
from engine.loading.persistence import open_persistent_cache
from engine.loading.speculation import build_speculator, check_draft
from engine.model.attention_tiles import KV_SPLIT
from engine.model.weights import Weights
from engine.sampling.grammar_compiler import GrammarCompiler

logger = logging.getLogger(__name__)

_KV_ADVICE = "lower kv_cache_memory, max_num_seqs or max_model_len"
_UNMEASURED_SHARE = 0.05  # of a card, kept for the temporaries of steps in plain torch


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine ready to step, and what was chosen for it."""

    engine: Engine
    info: EngineInfo
    backend: Backend


def load_engine(
    checkpoint: Checkpoint, config: EngineConfig, draft_checkpoint: Checkpoint | None = None
) -> AsyncEngine:
    """Load the model and start its engine thread; raises ConfigError or CheckpointError."""
    loaded = build_engine(checkpoint, config, draft_checkpoint)
    host = EngineThread(loaded.engine, stream_interval=config.stream_interval, info=loaded.info)
    return AsyncEngine(host, max_queue=config.max_queue, max_queue_tokens=config.max_queue_tokens)


def load_engine_process(model: str, config: EngineConfig, draft_model: str | None = None) -> AsyncEngine:
    """Load a model by name in a process of its own, which is started again when it fails; raises as above."""
    command = [sys.executable, "-m", "engine.loading.worker"]
    host = EngineProcess(command, StartEngine(model, draft_model, config))
    return AsyncEngine(host, max_queue=config.max_queue, max_queue_tokens=config.max_queue_tokens)


def build_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    draft_checkpoint: Checkpoint | None = None,
    *,
    backend: Backend | None = None,
) -> LoadedEngine:
    """Load the model, and a draft model if there is one, and build the synchronous engine around them.

    `backend`: instead of the one that suits the configuration and the device.
    """
    _prepare_process(config)
    device, num_threads = choose_device(config.device), choose_num_threads()
    at_start = _look_at_device(config, device)
    max_model_len = choose_max_model_len(config, checkpoint.config)
    sources = [one for one in (checkpoint, draft_checkpoint) if one is not None]
    configs = [source.config for source in sources]
    backend = backend or choose_backend(config, configs, device=device, num_threads=num_threads)
    check_draft(checkpoint, config, draft_checkpoint)
    _share_threads(backend, num_threads)
    target, draft = (_source(one, config, max_model_len, device) for one in (checkpoint, draft_checkpoint))
    assert target is not None
    loaded = backend.load(target, draft)
    vocab_size = _num_tokens(checkpoint)
    with stage_errors(LoadStage.LARGEST_STEP, device):
        profile = loaded.profile(_shape(config, 1, max_model_len, vocab_size))
    num_blocks = _choose_num_blocks(config, sources, backend, max_model_len, at_start, profile.step_bytes)
    max_model_len = _fit_max_model_len(config, max_model_len, num_blocks)
    info = EngineInfo(
        device=device_name(device),
        dtype=backend.dtype_name,
        kernels=backend.name,
        kv_cache_dtype=backend.kv_dtype_name,
        num_threads=num_threads,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_kv_blocks=num_blocks,
        kv_cache_bytes=num_blocks * backend.kv_bytes_per_block(checkpoint.config, config.block_size),
        weight_bytes=target.weights.num_bytes,
        speculation=config.speculation,
        draft_model=None if draft_checkpoint is None else draft_checkpoint.name,
        numerics=profile.numerics.level,
        numerics_reason=profile.numerics.reason,
    )
    num_bytes = num_blocks * _bytes_per_block(config, sources, backend)
    with _kv_errors(num_bytes, device):
        executor = loaded.build_executor(_shape(config, num_blocks, max_model_len, vocab_size))
    with stage_errors(LoadStage.FIRST_STEPS, device):
        engine = _assemble(checkpoint, config, executor, info, vocab_size)
    return LoadedEngine(engine=engine, info=info, backend=backend)


def choose_max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    """Return the context length to serve: the model's own, or a shorter one if asked for."""
    limit = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len must be at most {limit}, the model's own context, got {config.max_model_len}"
        )
    return config.max_model_len or limit


def _kv_errors(num_bytes: int, device: torch.device) -> AbstractContextManager[None]:
    advice = LoadStage.KV_CACHE.advice if device.type == "cuda" else _KV_ADVICE
    return memory_errors(f"kv_cache_memory: {num_bytes:,} bytes of keys and values", advice, device)


def _num_tokens(checkpoint: Checkpoint) -> int:
    """Return how many tokens may be chosen: a head padded beyond the tokenizer's never gives its padding."""
    return min(checkpoint.config.vocab_size, len(checkpoint.tokenizer.tokens))


def _share_threads(backend: Backend, num_threads: int) -> None:
    # What is left to torch beside the kernels is small: a second pool of threads would only be in their way.
    torch.set_num_threads(num_threads if backend.name == "torch" else 1)


def _prepare_process(config: EngineConfig) -> None:
    if KV_SPLIT % config.block_size:
        raise ConfigError(f"block_size must divide {KV_SPLIT}, got {config.block_size}")
    keep_freed_memory()


def _shape(config: EngineConfig, num_blocks: int, max_model_len: int, vocab_size: int) -> ExecutorShape:
    return ExecutorShape(
        vocab_size=vocab_size,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len,
    )


def _source(
    checkpoint: Checkpoint | None, config: EngineConfig, max_model_len: int, device: torch.device
) -> ModelSource | None:
    if checkpoint is None:
        return None
    dtype = choose_dtype(config.dtype, device)
    return ModelSource(
        name=str(checkpoint.path),
        config=checkpoint.config,
        weights=Weights(checkpoint.tensors, dtype=dtype, device=device, path=checkpoint.path),
        max_positions=min(max_model_len, checkpoint.config.max_position_embeddings),
    )


def _assemble(
    checkpoint: Checkpoint, config: EngineConfig, executor: ModelExecutor, info: EngineInfo, vocab_size: int
) -> Engine:
    speculator = build_speculator(config, executor, info)
    persistent = None
    if config.kv_cache_dir is not None:
        persistent = open_persistent_cache(
            Path(config.kv_cache_dir),
            checkpoint,
            info,
            executor.block_storage,
            max_bytes=config.kv_cache_dir_size,
        )
    return Engine(
        executor,
        KVCacheManager(
            BlockPool(info.num_kv_blocks),
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            listener=speculator.draft_cache if executor.max_draft_positions else None,
            persistence=None if persistent is None else persistent.persistence,
        ),
        max_model_len=info.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        vocab_size=vocab_size,
        eos_token_ids=checkpoint.stop_token_ids,
        fingerprint=checkpoint.fingerprint,
        kv_dtype=info.kv_cache_dtype,
        grammar_source=GrammarCompiler(
            token_bytes(checkpoint.tokenizer)[:vocab_size],
            end_token_ids=checkpoint.stop_token_ids,
            special_token_ids=checkpoint.tokenizer.special_token_ids,
        ),
        speculator=speculator,
        secret=None if persistent is None else persistent.secret,
    )


def _bytes_per_block(config: EngineConfig, sources: Sequence[Checkpoint], backend: Backend) -> int:
    return sum(backend.kv_bytes_per_block(one.config, config.block_size) for one in sources)


def _look_at_device(config: EngineConfig, device: torch.device) -> GPUMemory | None:
    """Measure a GPU before anything is loaded; on a CPU warn of what is set in vain."""
    utilization = config.gpu_memory_utilization
    if utilization is not None and (device.type == "cpu" or config.kv_cache_memory is not None):
        reason = "the device is cpu" if device.type == "cpu" else "kv_cache_memory is set"
        logger.warning("gpu_memory_utilization %g has no effect: %s", utilization, reason)
    if device.type == "cpu":
        for name in ("enforce_eager", "debug_kernels"):
            if getattr(config, name):
                logger.warning("%s has no effect: the device is cpu", name)
        return None
    with stage_errors(LoadStage.CONTEXT, device):
        return measure_gpu_memory(device)


def _choose_num_blocks(
    config: EngineConfig,
    sources: Sequence[Checkpoint],
    backend: Backend,
    max_model_len: int,
    at_start: GPUMemory | None,
    step_bytes: int,
) -> int:
    """Return how many blocks fit, of the target and of the draft model: both have the same."""
    bytes_per_block = _bytes_per_block(config, sources, backend)
    blocks_per_request = -(-max_model_len // config.block_size)
    memory = config.kv_cache_memory
    if memory is None:
        needed = bytes_per_block * (1 if config.max_model_len is None else blocks_per_request)
        memory = (
            default_kv_cache_memory()
            if at_start is None
            else _left_on_gpu(config, at_start, needed, step_bytes)
        )
    num_blocks = choose_num_blocks(
        bytes_per_block=bytes_per_block,
        max_useful_blocks=config.max_num_seqs * blocks_per_request,
        memory=memory,
    )
    num_bytes = num_blocks * bytes_per_block
    if at_start is not None:
        check_kv_cache_fits(num_bytes, free=measure_gpu_memory(torch.device("cuda")).free - step_bytes)
    elif num_bytes > available_memory():
        logger.warning(
            "kv_cache_memory: %d bytes of keys and values, of which %d are free; the system may end this "
            "process as they fill",
            num_bytes,
            available_memory(),
        )
    return num_blocks


def _left_on_gpu(config: EngineConfig, at_start: GPUMemory, needed: int, step_bytes: int) -> int:
    """Return the bytes for keys and values beside weights that are loaded and what steps will take."""
    now = measure_gpu_memory(torch.device("cuda"))
    unmeasured = 0 if step_bytes else int(now.total * _UNMEASURED_SHARE)
    return kv_cache_bytes_on_gpu(
        total=now.total,
        free=now.free - step_bytes,
        used_by_this_process=now.used_by_this_process(at_start) + step_bytes,
        utilization=config.gpu_memory_utilization,
        needed=needed,
        margin=max(GPU_MARGIN_BYTES, unmeasured),
    )


def _fit_max_model_len(config: EngineConfig, max_model_len: int, num_blocks: int) -> int:
    """Every request must fit the pool alone, or it could wait for ever."""
    num_slots = num_blocks * config.block_size
    if max_model_len <= num_slots:
        return max_model_len
    if config.max_model_len is not None:
        raise ConfigError(
            f"max_model_len of {max_model_len} tokens needs more KV memory: {num_slots} tokens fit; "
            "raise kv_cache_memory or lower max_model_len"
        )
    logger.warning("the KV memory holds %d tokens: max_model_len lowered from %d", num_slots, max_model_len)
    return num_slots
