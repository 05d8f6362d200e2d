"""draftline's engine: token ids in, token ids out.

Names are imported on first use, so that a record or an error does not cost the import of torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.async_engine import AsyncEngine
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.info import EngineInfo
    from engine.loader import build_engine, load_engine
    from engine.output_stream import OutputStream
    from engine.outputs import FinishReason, GenerationRequest, RequestOutput
    from engine.sampling_params import SamplingParams
    from engine.stats import EngineStats

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineConfig",
    "EngineInfo",
    "EngineStats",
    "FinishReason",
    "GenerationRequest",
    "OutputStream",
    "RequestOutput",
    "SamplingParams",
    "build_engine",
    "load_engine",
]

_MODULES = {
    "AsyncEngine": "async_engine",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineInfo": "info",
    "EngineStats": "stats",
    "FinishReason": "outputs",
    "GenerationRequest": "outputs",
    "OutputStream": "output_stream",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "build_engine": "loader",
    "load_engine": "loader",
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name`."""
    if name not in _MODULES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"engine.{_MODULES[name]}"), name)
