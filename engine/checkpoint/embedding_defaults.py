"""How a checkpoint's authors make embeddings of it: modules.json of sentence-transformers, or GGUF's key.

https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.metadata import Metadata, read_json, read_json_list, shorten
from engine.interface.errors import CheckpointError
from engine.interface.pooling import Pooling

_MAX_BYTES = 1 << 20
_MODE = "pooling_mode_"
_MODES = {"lasttoken": Pooling.LAST, "mean_tokens": Pooling.MEAN, "mean": Pooling.MEAN}
_APPLIED = frozenset({"Transformer", "Pooling", "Normalize"})
_GGUF_TYPES: dict[int, Pooling | str | None] = {
    0: None,
    1: Pooling.MEAN,
    2: "cls",
    3: Pooling.LAST,
    4: "rank",
}
"""llama.cpp's enum llama_pooling_type."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingDefaults:
    """What a checkpoint says of its embeddings; most say nothing."""

    pooling: Pooling | None = None
    unsupported: str | None = None  # what it would take and is not applied, for an error
    is_matryoshka: bool = False  # the first values of a vector are a smaller one (arXiv 2205.13147)


def read_embedding_defaults(folder: Path, config: Metadata) -> EmbeddingDefaults:
    """Read modules.json and what it names; raises CheckpointError where these are corrupt."""
    is_matryoshka = bool(config.find("is_matryoshka") or config.find("matryoshka_dimensions"))
    path = folder / "modules.json"
    if not path.is_file():
        return EmbeddingDefaults(is_matryoshka=is_matryoshka)
    pooling: Pooling | None = None
    for entry in read_json_list(path, max_bytes=_MAX_BYTES):
        if not isinstance(entry, dict):
            raise CheckpointError(f"{path}: must hold a list of objects, got {shorten(entry)}")
        module = Metadata(entry, path=path)
        kind = module.text("type").rpartition(".")[2]
        if kind not in _APPLIED:
            return EmbeddingDefaults(unsupported=f"its module {kind} (modules.json)")
        if kind == "Pooling":
            found = _read_mode(folder, module)
            if not isinstance(found, Pooling):
                return EmbeddingDefaults(unsupported=f"its pooling {found}")
            pooling = found
    return EmbeddingDefaults(pooling=pooling, is_matryoshka=is_matryoshka)


def read_gguf_pooling(metadata: Metadata, architecture: str) -> EmbeddingDefaults:
    """Read `<architecture>.pooling_type`; raises CheckpointError for a number that stands for none."""
    key = f"{architecture}.pooling_type"
    number = metadata.find_integer(key)
    if number is None:
        return EmbeddingDefaults()
    if number not in _GGUF_TYPES:
        raise metadata.error(key, f"one of {', '.join(map(str, _GGUF_TYPES))}", number)
    found = _GGUF_TYPES[number]
    if isinstance(found, Pooling) or found is None:
        return EmbeddingDefaults(pooling=found)
    return EmbeddingDefaults(unsupported=f"its pooling {found}")


def _read_mode(folder: Path, module: Metadata) -> Pooling | str:
    """Return how the folder's Pooling module pools; its name where that is none of ours."""
    name = module.text("path")
    if Path(name).name != name:
        raise module.error("path", "the name of a folder beside it", name)
    config = read_json(folder / name / "config.json", max_bytes=_MAX_BYTES)
    mode = config.find("pooling_mode")
    modes = [mode] if isinstance(mode, str) else _flags(config)
    if len(modes) != 1:
        return " and ".join(modes) or "none"
    return _MODES.get(modes[0], modes[0])


def _flags(config: Metadata) -> list[str]:
    return [
        key.removeprefix(_MODE) for key, value in config.values.items() if key.startswith(_MODE) and value
    ]
