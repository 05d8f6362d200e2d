"""Engines whose steps run as on a CUDA device: the executor and its graphs, over the kernels' twins."""

from collections.abc import Callable

import torch

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.model_config import ModelConfig
from engine.interface.config import EngineConfig
from engine.kernels.cuda.kernels import Kernels
from engine.kernels.cuda.twins.torch_kernels import torch_kernels
from engine.loading.cuda_backend import CudaBackend
from engine.loading.loader import LoadedEngine, build_engine
from tests.cuda_stand_in import HostDevice
from tests.tiny import LLAMA, random_checkpoint


def cuda_engine(
    config: ModelConfig = LLAMA,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    draft: Checkpoint | None = None,
    steps_ahead: int = 1,
    keeps_blocks: bool = False,
    is_captured: bool = True,
    is_checked: bool = False,
    dtype: torch.dtype = torch.float32,
    kernels: Callable[[], Kernels] = torch_kernels,
    **engine_config: object,
) -> LoadedEngine:
    """A real engine over a random model; a small pool and few graphs unless told otherwise."""
    device = HostDevice()
    backend = CudaBackend(
        device,
        dtype,
        device.wrap(kernels()),
        steps_ahead=steps_ahead,
        keeps_blocks=keeps_blocks,
        is_captured=is_captured,
        is_checked=is_checked,
    )
    settings = {"device": "cpu", "kv_cache_memory": 2**24, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    settings |= {"dtype": str(dtype).removeprefix("torch.")} | engine_config
    checkpoint = checkpoint or random_checkpoint(config, seed=seed)
    return build_engine(checkpoint, EngineConfig(**settings), draft, backend=backend)
