"""GGUF checkpoints, as llama.cpp's converter writes them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.registry import GGUF_ARCHITECTURES, find_architecture
from engine.checkpoint.assembly import assemble, config_errors_as_checkpoint_errors
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.embedding_defaults import read_gguf_pooling
from engine.checkpoint.generation_defaults import read_gguf_sampling
from engine.checkpoint.gguf_config import (
    GGUFHeader,
    check_foreign_keys,
    check_sliding_window,
    check_whole_model,
)
from engine.checkpoint.gguf_file import GGUFFile, GGUFTensorInfo, read_gguf
from engine.checkpoint.gguf_tokenizer import read_stop_token_ids, read_tokenizer
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.names import GGUF_NAMES
from engine.checkpoint.stored_tensor import GGUF_FORMATS, GGUFTensor
from engine.interface.errors import CheckpointError

_ROPE_FREQS = "rope_freqs.weight"


def load_gguf(path: Path, *, name: str | None = None) -> Checkpoint:
    """Read a GGUF file; the weights stay in the memory-mapped file.

    Raises CheckpointError when the file is corrupt or holds a model or tokenizer that is not supported.
    """
    file = read_gguf(path)
    metadata = Metadata(file.metadata, path=path)
    check_whole_model(metadata)
    architecture = _read_architecture(metadata)
    infos = {info.name: info for info in file.tensors}
    header = GGUFHeader(
        metadata=metadata,
        architecture=architecture.name,
        tensors=infos,
        freq_factors=_read_freq_factors(file, infos),
    )
    with config_errors_as_checkpoint_errors(path):
        config = architecture.read_gguf_config(header)
        check_foreign_keys(header, config)
    _check_freq_factors(config, path)
    tensors = {
        GGUF_NAMES.to_ours(info.name): _stored_tensor(
            file, info, _row_order(info, config) if architecture.has_interleaved_heads else None
        )
        for info in file.tensors
        if info.name != _ROPE_FREQS
    }
    tokenizer = read_tokenizer(metadata)
    return assemble(
        name=name or path.stem,
        path=path,
        weight_files=(path,),
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        stop_token_ids=read_stop_token_ids(metadata, tokenizer),
        generation_defaults=read_gguf_sampling(metadata),
        embedding_defaults=read_gguf_pooling(metadata, architecture.name),
    )


def _read_architecture(metadata: Metadata) -> Architecture:
    key = "architecture"
    name = metadata.text(f"general.{key}")
    architecture = find_architecture(name, among=GGUF_ARCHITECTURES, key=key, path=metadata.path)
    check_sliding_window(metadata, name)
    return architecture


def _read_freq_factors(file: GGUFFile, infos: dict[str, GGUFTensorInfo]) -> tuple[float, ...] | None:
    """Read Llama 3's rotary divisors, which the converter stores as a tensor."""
    info = infos.get(_ROPE_FREQS)
    if info is None:
        return None
    if info.format != "F32" or len(info.shape) != 1:
        raise CheckpointError(f"{file.path}: {_ROPE_FREQS} must be a list of F32 numbers, got {info.format}")
    factors = tuple(float(value) for value in file.rows(info).view("<f4").ravel())
    if not all(0.0 < factor < float("inf") for factor in factors):
        raise CheckpointError(f"{file.path}: {_ROPE_FREQS} holds numbers that are not positive and finite")
    return factors


def _check_freq_factors(config: ModelConfig, path: Path) -> None:
    factors = None if config.rope is None else config.rope.freq_factors
    if factors is not None and len(factors) != config.head_dim // 2:
        raise CheckpointError(
            f"{path}: tensor {_ROPE_FREQS} has {len(factors)} values, expected {config.head_dim // 2}, one "
            "for each rotary frequency"
        )


def _stored_tensor(
    file: GGUFFile, info: GGUFTensorInfo, row_order: npt.NDArray[np.intp] | None
) -> GGUFTensor:
    if info.format not in GGUF_FORMATS:
        raise CheckpointError(
            f"{file.path}: tensor {shorten(info.name)} has the format {info.format}, which is not supported; "
            f"supported: {', '.join(GGUF_FORMATS)}"
        )
    return GGUFTensor(
        name=info.name,
        path=file.path,
        shape=info.shape,
        format=info.format,
        stored_rows=file.rows(info),
        row_order=row_order,
    )


def _row_order(info: GGUFTensorInfo, config: ModelConfig) -> npt.NDArray[np.intp] | None:
    """Say where our rows lie in a query or key projection whose heads are interleaved.

    Rotation pairs elements i and i + d/2 of a head for us, 2i and 2i + 1 in llama.cpp, whose converter
    therefore stores row (half, i) as row (i, half).
    """
    parts = info.name.split(".")
    if parts[0] != "blk" or parts[2:3] not in (["attn_q"], ["attn_k"]):
        return None
    num_heads = config.num_heads if parts[2] == "attn_q" else config.num_kv_heads
    if info.shape[0] != num_heads * config.head_dim:
        return None  # misshapen: the model says so
    stored = np.arange(info.shape[0]).reshape(num_heads, config.head_dim // 2, 2)
    order: npt.NDArray[np.intp] = stored.swapaxes(1, 2).ravel()
    return order
