"""load_checkpoint: from what the user names to a Checkpoint."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.checkpoint import hub
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.fetch import fetch_model
from engine.checkpoint.gguf import load_gguf
from engine.checkpoint.huggingface import load_huggingface
from engine.checkpoint.nanogpt import load_nanogpt
from engine.checkpoint.registry import MODELS, default_cache_dir, find_model
from engine.interface.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_NANOGPT_FILE = "ckpt.pt"


def load_checkpoint(
    spec: str, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Load a model by name or path.

    `spec` is a registered name, the path of a .gguf, of a folder in Hugging Face's layout or of a nanoGPT
    ckpt.pt, or `hf:ORG/REPO[@REVISION]`. A registered model is downloaded once into `cache_dir` (default: the
    user's cache directory); `progress` is told of the download, which otherwise reports to stderr.
    Raises CheckpointError saying what is wrong and what to do.
    """
    if spec.startswith(hub.PREFIX):
        return load_huggingface(hub.download_repository(spec), name=hub.repository_name(spec))
    model = find_model(spec)
    if model is not None:
        path = fetch_model(model, cache_dir=cache_dir or default_cache_dir(), progress=progress)
        checkpoint = load_gguf(path, name=model.name)
        defaults = {**dict(model.generation_defaults), **checkpoint.generation_defaults}
        return replace(checkpoint, generation_defaults=defaults)
    path = _existing_path(spec)
    return _load_folder(path) if path.is_dir() else _load_file(path)


def _existing_path(spec: str) -> Path:
    try:
        path = Path(spec).expanduser()
        if spec and path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, or an unknown ~user
        raise CheckpointError(f"{spec[:80]!r} is neither a model name nor a possible path") from error
    if os.sep in spec or path.suffix in (".gguf", ".pt", ".safetensors"):
        raise CheckpointError(f"{spec}: no such file or folder")
    raise CheckpointError(
        f"unknown model {spec[:80]!r}; known names: {', '.join(model.name for model in MODELS)}; or pass the "
        "path of a .gguf file, a Hugging Face folder or a nanoGPT ckpt.pt, or hf:ORG/REPO"
    )


def _load_folder(path: Path) -> Checkpoint:
    if (path / "config.json").is_file():
        return load_huggingface(path)
    if (path / _NANOGPT_FILE).is_file():
        return load_nanogpt(path / _NANOGPT_FILE)
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_files:
        raise CheckpointError(
            f"{path}: holds {len(gguf_files)} GGUF files; pass one, as {path / gguf_files[0]}"
        )
    raise CheckpointError(
        f"{path}: neither config.json (Hugging Face) nor {_NANOGPT_FILE} (nanoGPT) is there"
    )


def _load_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: weights alone; pass the folder, which must also hold config.json")
    if path.suffix == ".gguf" or _begins_with(path, b"GGUF"):
        return load_gguf(path)
    if path.suffix == ".pt" or _begins_with(path, b"PK"):
        return load_nanogpt(path)
    raise CheckpointError(f"{path}: neither a GGUF file nor a nanoGPT ckpt.pt")


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
