"""Hugging Face folders: config.json, safetensors, tokenizer and generation defaults."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.checkpoint import names
from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.assembly import MAX_TENSORS, assemble, config_errors_as_checkpoint_errors
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.embedding_defaults import read_embedding_defaults
from engine.checkpoint.generation_defaults import read_generation_config
from engine.checkpoint.huggingface_config import read_architecture, read_model_config
from engine.checkpoint.huggingface_tokenizer import read_tokenizer
from engine.checkpoint.metadata import Metadata, read_json, shorten
from engine.checkpoint.stored_tensor import PLAIN_FORMATS, TorchTensor
from engine.interface.errors import CheckpointError

_MAX_JSON_BYTES = 1 << 26
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


def load_huggingface(folder: Path, *, name: str | None = None) -> Checkpoint:
    """Read a folder in Hugging Face's layout; the weights stay in the memory-mapped files.

    Raises CheckpointError when a file is missing or corrupt, or the model or tokenizer is not supported.
    """
    metadata = read_json(folder / "config.json", max_bytes=_MAX_JSON_BYTES)
    with config_errors_as_checkpoint_errors(metadata.path):
        architecture = read_architecture(metadata)
        config = read_model_config(metadata, architecture)
    shards = [_open_shard(path, wanted) for path, wanted in _find_shards(folder).items()]
    tensors = _read_tensors(shards, architecture)
    generation = _read_generation_config(folder)
    tokenizer = read_tokenizer(folder, architecture=architecture, config=metadata)
    return assemble(
        name=name or folder.resolve().name,
        path=folder,
        weight_files=tuple(shard.path for shard in shards),
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        stop_token_ids=_read_stop_token_ids((generation, metadata), tokenizer.eos_token_id),
        generation_defaults=read_generation_config(generation),
        embedding_defaults=read_embedding_defaults(folder, metadata),
    )


def _find_shards(folder: Path) -> dict[Path, frozenset[str] | None]:
    """Return the weight files, each with the tensors wanted from it (None: all)."""
    if (folder / _SINGLE_FILE).is_file():
        return {folder / _SINGLE_FILE: None}
    if (folder / _INDEX_FILE).is_file():
        return _read_index(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder}: the weights are pickled (.bin), which can run code when loaded; convert them: load "
            "the model with transformers and call save_pretrained(), which writes safetensors"
        )
    raise CheckpointError(f"{folder}: no weights: neither {_SINGLE_FILE} nor {_INDEX_FILE} is there")


def _read_index(folder: Path) -> dict[Path, frozenset[str] | None]:
    index = read_json(folder / _INDEX_FILE, max_bytes=_MAX_JSON_BYTES)
    weight_map = index.find_section("weight_map")
    if weight_map is None or not weight_map.values:
        raise CheckpointError(f"{index.path}: weight_map is missing or empty")
    by_file: dict[str, set[str]] = {}
    for tensor_name in weight_map.values:
        file_name = weight_map.text(tensor_name)
        if Path(file_name).name != file_name:
            raise weight_map.error(tensor_name, "a file name in the same folder", file_name)
        by_file.setdefault(file_name, set()).add(tensor_name)
    missing = sorted(file_name for file_name in by_file if not (folder / file_name).is_file())
    if missing:
        raise CheckpointError(
            f"{index.path}: names {len(by_file)} weight files, of which {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; fetch them"
        )
    return {folder / file_name: frozenset(wanted) for file_name, wanted in sorted(by_file.items())}


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """An open safetensors file and the names of the tensors wanted from it."""

    path: Path
    file: Any
    keys: tuple[str, ...]


def _open_shard(path: Path, wanted: frozenset[str] | None) -> _Shard:
    """Open one safetensors file; its header is checked against its size when opened."""
    with _corrupt_file_errors(path):
        file: Any = safe_open(path, framework="pt")
        stored = frozenset(file.keys())
        if wanted is not None and not wanted <= stored:
            raise CheckpointError(
                f"{path}: tensor {min(wanted - stored)} is missing, which the index promises"
            )
        kept = sorted(key for key in wanted or stored if not names.is_ignored_buffer(key))
        return _Shard(path=path, file=file, keys=tuple(kept))


def _read_tensors(shards: Sequence[_Shard], architecture: Architecture) -> dict[str, TorchTensor]:
    """Name the tensors as we do, without the prefix of a wrapper that all of them share."""
    num_tensors = sum(len(shard.keys) for shard in shards)
    if num_tensors > MAX_TENSORS:
        raise CheckpointError(
            f"{shards[0].path.parent}: {num_tensors} tensors, more than the {MAX_TENSORS} that any supported "
            "model has"
        )
    wrapper = names.shared_wrapper([key for shard in shards for key in shard.keys])
    tensors: dict[str, TorchTensor] = {}
    for shard in shards:
        for key in shard.keys:
            ours = architecture.tensor_names.to_ours(key.removeprefix(wrapper))
            if ours in tensors:
                raise CheckpointError(f"{shard.path}: {key} and {tensors[ours].name} are the same tensor")
            tensors[ours] = _open_tensor(shard, key, ours.endswith(architecture.transposed_weights))
    return tensors


@contextmanager
def _corrupt_file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated or corrupt safetensors file ({shorten(str(error))}); fetch it again"
        ) from error


def _open_tensor(shard: _Shard, key: str, is_transposed: bool) -> TorchTensor:
    path = shard.path
    with _corrupt_file_errors(path):
        view = shard.file.get_slice(key)
        tensor_format, shape = view.get_dtype(), tuple(view.get_shape())
    if tensor_format not in PLAIN_FORMATS:
        raise CheckpointError(
            f"{path}: tensor {key} is {tensor_format}; supported are {', '.join(PLAIN_FORMATS)}"
        )
    if is_transposed and len(shape) != 2:
        raise CheckpointError(f"{path}: tensor {key} must have two dimensions, got {list(shape)}")
    return TorchTensor(
        name=key,
        path=path,
        shape=shape[::-1] if is_transposed else shape,
        format=tensor_format,
        load=partial(shard.file.get_tensor, key),
        transposed=is_transposed,
    )


def _read_generation_config(folder: Path) -> Metadata:
    path = folder / "generation_config.json"
    return read_json(path, max_bytes=_MAX_JSON_BYTES) if path.is_file() else Metadata({}, path=path)


def _read_stop_token_ids(sources: tuple[Metadata, ...], eos_token_id: int | None) -> frozenset[int]:
    """Take the end tokens of the first source that has any, and the tokenizer's own."""
    own = frozenset() if eos_token_id is None else frozenset({eos_token_id})
    for source in sources:
        value = source.find("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            return own | {
                Metadata({"eos_token_id": i}, path=source.path).integer("eos_token_id") for i in ids
            }
    return own
