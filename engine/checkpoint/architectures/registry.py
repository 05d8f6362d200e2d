"""Which families are served; a new one is a file beside this one and a name in this list."""

from collections.abc import Mapping
from pathlib import Path

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.gpt2 import GPT2
from engine.checkpoint.architectures.llama import LLAMA
from engine.checkpoint.architectures.mistral import MISTRAL
from engine.checkpoint.architectures.qwen import QWEN2, QWEN3
from engine.checkpoint.metadata import shorten
from engine.interface.errors import CheckpointError

ARCHITECTURES = {architecture.name: architecture for architecture in (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3)}
GGUF_ARCHITECTURES = {architecture.name: architecture for architecture in (GPT2, LLAMA, QWEN2, QWEN3)}
"""llama.cpp's converter calls a Mistral "llama"."""


def find_architecture(name: str, *, among: Mapping[str, Architecture], key: str, path: Path) -> Architecture:
    """Return the family that a file names under `key`, or raise CheckpointError with those supported."""
    if name not in among:
        raise CheckpointError(
            f"{path}: {key} {shorten(name)} is not supported; supported: {', '.join(among)}"
        )
    return among[name]
