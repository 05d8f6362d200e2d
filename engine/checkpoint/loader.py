"""load_checkpoint: from what the user names to a Checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.checkpoint import hub
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.fetch import fetch_model
from engine.checkpoint.gguf import load_gguf
from engine.checkpoint.huggingface import load_huggingface
from engine.checkpoint.location import CheckpointKind, locate_checkpoint
from engine.checkpoint.nanogpt import load_nanogpt
from engine.checkpoint.registry import NamedModel, default_cache_dir

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_READERS: dict[CheckpointKind, Callable[[Path], Checkpoint]] = {
    CheckpointKind.GGUF: load_gguf,
    CheckpointKind.HUGGINGFACE: load_huggingface,
    CheckpointKind.NANOGPT: load_nanogpt,
}


def load_checkpoint(
    spec: str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Load a model by name or path.

    `spec` is a registered name, the path of a .gguf, of a folder in Hugging Face's layout or of a nanoGPT
    ckpt.pt, or `hf:ORG/REPO[@REVISION]`. A registered model is downloaded once into `cache_dir` (default: the
    user's cache directory); `progress` is told of the download, which otherwise reports to stderr.
    Raises CheckpointError saying what is wrong and what to do.
    """
    location = locate_checkpoint(spec)
    if location.named_model is not None:
        return _load_named(location.named_model, cache_dir, progress)
    if location.path is None:
        return load_huggingface(hub.download_repository(spec), name=hub.repository_name(spec))
    return _READERS[location.kind](location.path)


def _load_named(model: NamedModel, cache_dir: Path | None, progress: Progress | None) -> Checkpoint:
    path = fetch_model(model, cache_dir=cache_dir or default_cache_dir(), progress=progress)
    checkpoint = load_gguf(path, name=model.name)
    defaults = {**dict(model.generation_defaults), **checkpoint.generation_defaults}
    return replace(checkpoint, generation_defaults=defaults)
