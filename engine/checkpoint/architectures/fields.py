"""Fields of config.json that several families read the same way."""

from pathlib import Path

from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import Activation
from engine.interface.errors import CheckpointError

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


def divide_heads(hidden_size: int, num_heads: int, path: Path) -> int:
    """Return the size of a head; raises CheckpointError if the heads do not divide the hidden size."""
    if num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"{path}: {num_heads} heads do not divide the hidden size of {hidden_size}")
    return hidden_size // num_heads


def read_activation(metadata: Metadata, key: str) -> Activation:
    """Return the activation that a field names, or raise CheckpointError with those supported."""
    name = metadata.text(key)
    if name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{metadata.path}: {key} {shorten(name)} is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def check_sliding_window(metadata: Metadata, name: str, max_positions: int) -> None:
    """Raise CheckpointError for sliding-window attention shorter than the context."""
    window = metadata.integer("sliding_window", default=0)
    if 0 < window < max_positions:
        raise CheckpointError(
            f"{metadata.path}: sliding-window attention (sliding_window = {window}, shorter than the context "
            f"of {max_positions}; where the field is absent {name} has 4096) "
            f"is not supported; to serve the first {window} positions set max_position_embeddings to {window}"
        )
