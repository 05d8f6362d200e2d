"""EngineConfig: how the engine runs: frozen, checked once."""

from dataclasses import dataclass

from engine.interface.errors import ConfigError
from engine.interface.speculation import MAX_DRAFT_TOKENS


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs; a field left None is chosen from the model and the machine."""

    device: str = "auto"  # "auto", "cpu" or "cuda"
    dtype: str = "auto"  # "auto", "float32", "bfloat16" or "float16"
    kernels: str = "auto"  # "auto", "fused" (CPU kernels or an error) or "torch"
    kv_cache_dtype: str = "auto"  # "auto", "bfloat16", "float32" or "int8"
    quantization: str | None = None  # "q8_0", "q4_1" or "q4_0": re-encode the weights when loading
    max_model_len: int | None = None  # prompt and answer together, in tokens
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_memory: int | None = None  # bytes
    enable_prefix_caching: bool = True
    max_waiting: int = 256  # requests that may wait; one more is refused
    stream_interval: float = 0.0  # seconds that a stream's outputs are at least apart
    speculation: str = "off"  # of requests that do not say: "off", "auto", "draft" or "ngram"
    num_draft_tokens: int = 8  # that the controller may choose at most, for one request in one step
    steps_ahead: int = 0  # steps in torch that are launched before the tokens of the last one are read

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_choice("device", self.device, ("auto", "cpu", "cuda"))
        _check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _check_choice("kernels", self.kernels, ("auto", "fused", "torch"))
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, ("auto", "bfloat16", "float32", "int8"))
        if self.quantization is not None:
            _check_choice("quantization", self.quantization, ("q8_0", "q4_1", "q4_0"))
        _check_choice("speculation", self.speculation, ("off", "auto", "draft", "ngram"))
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
            "max_waiting",
            "num_draft_tokens",
        ):
            _check_at_least_one(name, getattr(self, name))
        for name in ("max_model_len", "kv_cache_memory"):
            if getattr(self, name) is not None:
                _check_at_least_one(name, getattr(self, name))
        if self.stream_interval < 0.0:
            raise ConfigError(f"stream_interval must be at least 0 seconds, got {self.stream_interval}")
        if self.steps_ahead < 0:
            raise ConfigError(f"steps_ahead must be at least 0, got {self.steps_ahead}")
        if self.num_draft_tokens > MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"num_draft_tokens must be at most {MAX_DRAFT_TOKENS}, got {self.num_draft_tokens}"
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
