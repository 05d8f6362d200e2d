"""EngineConfig: how the engine runs: frozen, checked once."""

from dataclasses import dataclass
from typing import Literal, get_args

from engine.interface.errors import ConfigError
from engine.interface.speculation import MAX_DRAFT_TOKENS

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Kernels = Literal["auto", "fused", "torch"]  # fused: the device's kernels or an error
KVCacheDType = Literal["auto", "bfloat16", "float32", "int8"]
Quantization = Literal["q8_0", "q4_1", "q4_0"]
SpeculationChoice = Literal["off", "auto", "draft", "ngram"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs; a field left None is chosen from the model and the machine."""

    device: Device = "auto"
    dtype: DType = "auto"
    kernels: Kernels = "auto"
    kv_cache_dtype: KVCacheDType = "auto"
    quantization: Quantization | None = None  # re-encode the weights when loading
    max_model_len: int | None = None  # prompt and answer together, in tokens
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_memory: int | None = None  # bytes; chosen from what is free if not given
    gpu_memory_utilization: float | None = None  # of a GPU's memory, weights and all; 0.9 if not given
    enable_prefix_caching: bool = True
    kv_cache_dir: str | None = None  # where cached blocks outlive the process
    kv_cache_dir_size: int = 4 * 2**30  # bytes of it at most
    max_queue: int = 256  # requests that may wait; one more is refused
    max_queue_tokens: int | None = None  # of the prompts of all open requests; more are refused
    stream_interval: float = 0.0  # seconds that a stream's outputs are at least apart
    speculation: SpeculationChoice = "off"  # of requests that do not say
    num_draft_tokens: int = 8  # that the controller may choose at most, for one request in one step
    enforce_eager: bool = False  # on a GPU: launch every kernel by itself, capture no CUDA graphs
    debug_kernels: bool = False  # on a GPU: wait for every kernel, and say which one failed, in which step
    steps_ahead: int | None = None  # launched before the last one's tokens are read; 1 on a GPU, else 0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), get_args(choices))
        if self.quantization is not None:
            _check_choice("quantization", self.quantization, get_args(Quantization))
        for name in _AT_LEAST_ONE:
            _check_at_least_one(name, getattr(self, name))
        if self.gpu_memory_utilization is not None and not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}"
            )
        if self.stream_interval < 0.0:
            raise ConfigError(f"stream_interval must be at least 0 seconds, got {self.stream_interval}")
        if self.steps_ahead is not None and self.steps_ahead < 0:
            raise ConfigError(f"steps_ahead must be at least 0, got {self.steps_ahead}")
        if self.num_draft_tokens > MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"num_draft_tokens must be at most {MAX_DRAFT_TOKENS}, got {self.num_draft_tokens}"
            )


_CHOICES = {
    "device": Device,
    "dtype": DType,
    "kernels": Kernels,
    "kv_cache_dtype": KVCacheDType,
    "speculation": SpeculationChoice,
}
_AT_LEAST_ONE = (
    *("max_num_seqs", "max_num_batched_tokens", "block_size", "max_queue", "num_draft_tokens"),
    *("max_model_len", "kv_cache_memory", "kv_cache_dir_size", "max_queue_tokens"),
)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
