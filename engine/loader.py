"""From a checkpoint and a configuration to a running engine: every automatic choice is made here."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.async_engine import AsyncEngine
from engine.attention_tiles import CHUNK
from engine.checkpoint.checkpoint import Checkpoint
from engine.config import EngineConfig, ModelConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.info import EngineInfo
from engine.kv_cache.block_pool import BlockPool
from engine.kv_cache.kv_cache_manager import KVCacheManager
from engine.kv_cache.kv_storage import (
    KVStorage,
    choose_num_blocks,
    default_kv_cache_memory,
    kv_bytes_per_block,
)
from engine.model.registry import build_model
from engine.model.weights import Weights
from engine.model_runner import ModelRunner
from engine.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine ready to step, and what was chosen for it."""

    engine: Engine
    info: EngineInfo


def load_engine(checkpoint: Checkpoint, config: EngineConfig) -> AsyncEngine:
    """Load the model and start its engine thread; raises ConfigError or CheckpointError."""
    loaded = build_engine(checkpoint, config)
    return AsyncEngine(loaded.engine, max_waiting=config.max_waiting, info=loaded.info)


def build_engine(checkpoint: Checkpoint, config: EngineConfig) -> LoadedEngine:
    """Load the model and build the synchronous engine around it."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    num_threads = choose_num_threads()
    torch.set_num_threads(num_threads)
    model_config = checkpoint.config
    if CHUNK % config.block_size:
        raise ConfigError(f"block_size must divide {CHUNK}, got {config.block_size}")
    max_model_len = choose_max_model_len(config, model_config)
    with torch.inference_mode():
        weights = Weights(checkpoint.tensors, dtype=dtype, device=device)
        model = build_model(model_config, weights, max_positions=max_model_len)

    num_blocks = _choose_num_blocks(config, model_config, max_model_len, dtype, device)
    max_model_len = _fit_max_model_len(config, max_model_len, num_blocks)
    kv_storage = KVStorage(
        num_layers=model_config.num_layers,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        dtype=dtype,
        device=device,
    )
    vocab_size = min(model_config.vocab_size, len(checkpoint.tokenizer.tokens))
    runner = ModelRunner(
        model, kv_storage, Sampler(vocab_size=vocab_size), block_size=config.block_size, device=device
    )
    engine = Engine(
        runner,
        KVCacheManager(
            BlockPool(num_blocks),
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        vocab_size=vocab_size,
        eos_token_ids=checkpoint.stop_token_ids,
        fingerprint=checkpoint.fingerprint,
        kv_dtype=str(dtype),
    )
    info = EngineInfo(
        device=_device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        num_threads=num_threads,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_kv_blocks=num_blocks,
        kv_cache_bytes=kv_storage.num_bytes,
        weight_bytes=weights.num_bytes,
    )
    return LoadedEngine(engine=engine, info=info)


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but this PyTorch sees no CUDA GPU; use 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name; "auto" is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return dtypes[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def choose_num_threads(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the cores this process may really use: its affinity, or its container's quota if less."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(num_cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or the quota is the word "max"
        return num_cores


def choose_max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    """Return the context length to serve: the model's own, or a shorter one if asked for."""
    limit = model_config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len must be at most {limit}, the model's own context, got {config.max_model_len}"
        )
    return config.max_model_len or limit


def _choose_num_blocks(
    config: EngineConfig,
    model_config: ModelConfig,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    return choose_num_blocks(
        bytes_per_block=kv_bytes_per_block(
            num_layers=model_config.num_layers,
            num_kv_heads=model_config.num_kv_heads,
            head_dim=model_config.head_dim,
            block_size=config.block_size,
            dtype=dtype,
        ),
        max_useful_blocks=config.max_num_seqs * -(-max_model_len // config.block_size),
        memory=config.kv_cache_memory or default_kv_cache_memory(device),
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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
