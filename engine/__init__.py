"""draftline's engine: token ids in, token ids out.

Names are imported on first use, so that a record or an error does not cost the import of torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bridge.async_engine import AsyncEngine
    from engine.bridge.output_stream import OutputStream
    from engine.core.engine import Engine
    from engine.interface.config import EngineConfig
    from engine.interface.info import EngineInfo
    from engine.interface.outputs import FinishReason, GenerationRequest, RequestOutput
    from engine.interface.sampling_params import SamplingParams
    from engine.interface.stats import EngineStats
    from engine.loading.loader import build_engine, load_engine

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
    "AsyncEngine": "bridge.async_engine",
    "Engine": "core.engine",
    "EngineConfig": "interface.config",
    "EngineInfo": "interface.info",
    "EngineStats": "interface.stats",
    "FinishReason": "interface.outputs",
    "GenerationRequest": "interface.outputs",
    "OutputStream": "bridge.output_stream",
    "RequestOutput": "interface.outputs",
    "SamplingParams": "interface.sampling_params",
    "build_engine": "loading.loader",
    "load_engine": "loading.loader",
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name`."""
    if name not in _MODULES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"engine.{_MODULES[name]}"), name)
