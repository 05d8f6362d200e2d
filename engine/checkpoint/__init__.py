"""Where weights come from: GGUF files, Hugging Face folders, nanoGPT checkpoints and named models.

Names are imported on first use, so that finding a model does not cost the import of torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.checkpoint.checkpoint import Checkpoint, StoredTensor, TokenizerData
    from engine.checkpoint.fetch import verify_models
    from engine.checkpoint.loader import load_checkpoint
    from engine.checkpoint.location import locate_checkpoint
    from engine.checkpoint.registry import DEFAULT_MODEL, ModelListing, list_models

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "ModelListing",
    "StoredTensor",
    "TokenizerData",
    "list_models",
    "load_checkpoint",
    "locate_checkpoint",
    "verify_models",
]

_MODULES = {
    "DEFAULT_MODEL": "registry",
    "Checkpoint": "checkpoint",
    "ModelListing": "registry",
    "StoredTensor": "checkpoint",
    "TokenizerData": "checkpoint",
    "list_models": "registry",
    "load_checkpoint": "loader",
    "locate_checkpoint": "location",
    "verify_models": "fetch",
}


def __getattr__(name: str) -> object:
    """Import the module that holds `name`."""
    if name not in _MODULES:
        raise AttributeError(f"module 'engine.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"engine.checkpoint.{_MODULES[name]}"), name)
