"""Where weights come from: GGUF files, Hugging Face folders, nanoGPT checkpoints and named models."""

from engine.checkpoint.checkpoint import Checkpoint, StoredTensor, TokenizerData
from engine.checkpoint.fetch import verify_models
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.registry import DEFAULT_MODEL, ModelListing, list_models

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "ModelListing",
    "StoredTensor",
    "TokenizerData",
    "list_models",
    "load_checkpoint",
    "verify_models",
]
