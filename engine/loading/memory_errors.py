"""Allocations that fail while a model is loaded: what did not fit, what is free, what to do."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum

import torch

from engine.interface.errors import ConfigError
from engine.loading.kv_memory import available_memory

_WORDS = ("allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
"""In RuntimeErrors about memory: torch's on a CPU, the CUDA driver's and Triton's, the libraries'."""

_SMALLER_STEP = "lower max_num_batched_tokens, max_num_seqs or max_model_len"


class LoadStage(Enum):
    """What a device's memory is needed for, in the order of a start, and what to do where it is short."""

    CONTEXT = ("the GPU's context", "end what else uses the card")
    WEIGHTS = (
        "the weights",
        "end what else uses the card, take a smaller model, or set dtype to bfloat16 or float16",
    )
    LARGEST_STEP = ("the largest step and its buffers", f"{_SMALLER_STEP}, or take a smaller model")
    CAPTURED_STEPS = ("the captured steps", f"{_SMALLER_STEP}, or take a smaller model")
    KV_CACHE = (
        "keys and values",
        "lower gpu_memory_utilization or kv_cache_memory, max_num_seqs or max_model_len",
    )
    FIRST_STEPS = (
        "the first steps",
        f"lower gpu_memory_utilization or kv_cache_memory, or {_SMALLER_STEP}",
    )

    def __init__(self, what: str, advice: str) -> None:
        self.what, self.advice = what, advice


def stage_errors(
    stage: LoadStage, device: torch.device, *, name: str | None = None
) -> AbstractContextManager[None]:
    """Turn a failed allocation of this stage into a ConfigError; `name` is the model's, for the message."""
    return memory_errors(stage.what if name is None else f"{name}: {stage.what}", stage.advice, device)


@contextmanager
def memory_errors(what: str, advice: str, device: torch.device) -> Iterator[None]:
    """Turn a failed allocation into a ConfigError: what did not fit, what is free, what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        raise ConfigError(f"{what} cannot be allocated: {_describe_free(device)}; {advice}") from error


def _is_about_memory(error: BaseException | None) -> bool:
    """Tell it also of an error that hides it: ending a capture that failed raises another one."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe_free(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{available_memory():,} bytes are free"
    try:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except RuntimeError:  # the context itself found no room, or the failure broke it
        return "the GPU does not say what is free"
    return f"{free:,} of the GPU's {total:,} bytes are free, this process holds {reserved:,}"
