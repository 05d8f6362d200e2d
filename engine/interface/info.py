"""EngineInfo: what was chosen at start-up."""

from dataclasses import dataclass
from typing import Literal

NumericsLevel = Literal["bitwise", "tolerance"]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """The automatic choices of an engine, for people to read."""

    device: str
    dtype: str
    kernels: str  # "torch", or the instruction set of the CPU kernels
    kv_cache_dtype: str
    num_threads: int
    max_model_len: int
    block_size: int
    num_kv_blocks: int
    kv_cache_bytes: int  # the draft model's come on top
    weight_bytes: int  # of the model, without the draft model
    speculation: str = "off"  # of requests that do not say
    draft_model: str | None = None
    numerics: NumericsLevel = "bitwise"  # tolerance: batches may change a token where two are all but equal
    numerics_reason: str | None = None  # why it is no more than that
