"""locate_checkpoint: what the user names, found and told apart without reading weights or importing torch."""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from engine.checkpoint import hub
from engine.checkpoint.registry import MODELS, NamedModel, find_model
from engine.interface.errors import CheckpointError

_NANOGPT_FILE = "ckpt.pt"
_GGUF_MAGIC = b"GGUF"
_ZIP_MAGIC = b"PK"


class CheckpointKind(Enum):
    """Where a checkpoint comes from, which says how it is read."""

    NAMED = "named"
    HUB = "hub"
    GGUF = "gguf"
    HUGGINGFACE = "huggingface"
    NANOGPT = "nanogpt"


@dataclass(frozen=True, kw_only=True)
class CheckpointLocation:
    """Where a model is, before anything of it is read."""

    kind: CheckpointKind
    path: Path | None = None  # of what is on this machine for sure
    named_model: NamedModel | None = None


def locate_checkpoint(spec: str) -> CheckpointLocation:
    """Find what `spec` (as load_checkpoint takes it) names.

    Raises CheckpointError for an unknown name, a path that does not exist and a file or folder that is no
    checkpoint; fetches nothing.
    """
    if spec.startswith(hub.PREFIX):
        hub.check_spec(spec)
        return CheckpointLocation(kind=CheckpointKind.HUB)
    model = find_model(spec)
    if model is not None:
        return CheckpointLocation(kind=CheckpointKind.NAMED, named_model=model)
    path = _existing_path(spec)
    return _locate_in_folder(path) if path.is_dir() else _locate_file(path)


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


def _locate_in_folder(path: Path) -> CheckpointLocation:
    if (path / "config.json").is_file():
        return CheckpointLocation(kind=CheckpointKind.HUGGINGFACE, path=path)
    if (path / _NANOGPT_FILE).is_file():
        return CheckpointLocation(kind=CheckpointKind.NANOGPT, path=path / _NANOGPT_FILE)
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_files:
        raise CheckpointError(
            f"{path}: holds {len(gguf_files)} GGUF files; pass one, as {path / gguf_files[0]}"
        )
    raise CheckpointError(
        f"{path}: neither config.json (Hugging Face) nor {_NANOGPT_FILE} (nanoGPT) is there"
    )


def _locate_file(path: Path) -> CheckpointLocation:
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: weights alone; pass the folder, which must also hold config.json")
    first_bytes = _read_beginning(path)
    if first_bytes.startswith(_GGUF_MAGIC):
        return CheckpointLocation(kind=CheckpointKind.GGUF, path=path)
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path}: the file is empty; fetch it again"
            if not first_bytes
            else f"{path}: not a GGUF file: it does not begin with the letters GGUF"
        )
    if path.suffix == ".pt" or first_bytes.startswith(_ZIP_MAGIC):
        return CheckpointLocation(kind=CheckpointKind.NANOGPT, path=path)
    raise CheckpointError(f"{path}: neither a GGUF file nor a nanoGPT ckpt.pt")


def _read_beginning(path: Path) -> bytes:
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path}: neither a file nor a folder")
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
