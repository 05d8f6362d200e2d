"""GGUF checkpoints: GPT-2, Llama, Mistral, SmolLM and Qwen as llama.cpp's converter writes them."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.checkpoint import names
from engine.checkpoint.assembly import assemble, config_errors_as_checkpoint_errors
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.generation_defaults import read_gguf_sampling
from engine.checkpoint.gguf_file import GGUFFile, GGUFTensorInfo, read_gguf
from engine.checkpoint.gguf_tokenizer import read_stop_token_ids, read_tokenizer
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.stored_tensor import GGUFTensor, can_dequantize
from engine.config import Activation, ModelConfig, RopeConfig, RopeScaling
from engine.errors import CheckpointError

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")

_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Keys that change the forward pass, with the values that leave it as it is."""

_ROPE_FREQS = "rope_freqs.weight"


def load_gguf(path: Path, *, name: str | None = None) -> Checkpoint:
    """Read a GGUF file; the weights stay in the memory-mapped file.

    Raises CheckpointError when the file is corrupt or holds a model or tokenizer that is not supported.
    """
    file = read_gguf(path)
    metadata = Metadata(file.metadata, path=path)
    architecture = _check_supported(metadata)
    infos = {info.name: info for info in file.tensors}
    with config_errors_as_checkpoint_errors(path):
        config = _read_config(metadata, architecture, infos, _read_freq_factors(file, infos))
    tensors = {
        names.from_gguf(info.name): _stored_tensor(file, info, _row_order(info, architecture, config))
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
    )


def _check_supported(metadata: Metadata) -> str:
    """Return the architecture, or raise CheckpointError saying what is unsupported."""
    path = metadata.path
    if metadata.text("general.type", default="model") != "model":
        raise CheckpointError(
            f"{path}: holds a GGUF {shorten(metadata.find('general.type'))}, not a whole model"
        )
    if metadata.integer("split.count", default=1) > 1:
        raise CheckpointError(
            f"{path}: one part of a split model; join the parts with `llama-gguf-split --merge` first"
        )
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architecture {shorten(architecture)} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    for suffix, neutral in _NEUTRAL_VALUES.items():
        value = metadata.find(f"{architecture}.{suffix}")
        if value is not None and value not in neutral:
            raise CheckpointError(f"{path}: {architecture}.{suffix} = {shorten(value)} is not supported")
    _check_sliding_window(metadata, architecture)
    return architecture


def _check_sliding_window(metadata: Metadata, architecture: str) -> None:
    key = f"{architecture}.attention.sliding_window"
    window = metadata.integer(key, default=0)
    if 0 < window < metadata.integer(f"{architecture}.context_length"):
        raise CheckpointError(
            f"{metadata.path}: sliding-window attention ({key} = {window}, shorter than the context) "
            "is not supported"
        )


def _read_config(
    metadata: Metadata,
    architecture: str,
    infos: dict[str, GGUFTensorInfo],
    freq_factors: tuple[float, ...] | None,
) -> ModelConfig:
    prefix = architecture
    embedding = infos.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{metadata.path}: tensor token_embd.weight is missing")
    hidden_size = metadata.integer(f"{prefix}.embedding_length")
    num_heads = _uniform_integer(metadata, f"{prefix}.attention.head_count")
    is_gpt2 = architecture == "gpt2"
    norm_key = f"{prefix}.attention.layer_norm_{'epsilon' if is_gpt2 else 'rms_epsilon'}"
    return ModelConfig(
        architecture="gpt2" if is_gpt2 else "llama",
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=_uniform_integer(metadata, f"{prefix}.feed_forward_length"),
        num_layers=metadata.integer(f"{prefix}.block_count"),
        num_heads=num_heads,
        num_kv_heads=_uniform_integer(metadata, f"{prefix}.attention.head_count_kv", default=num_heads),
        head_dim=_read_head_dim(metadata, prefix, hidden_size, num_heads),
        max_position_embeddings=metadata.integer(f"{prefix}.context_length"),
        norm_eps=metadata.real(norm_key),
        activation=Activation.GELU_TANH if is_gpt2 else Activation.SILU,
        rope=None if is_gpt2 else _read_rope(metadata, prefix, freq_factors),
        tie_word_embeddings="output.weight" not in infos,
        qkv_bias=is_gpt2 or architecture == "qwen2" or "blk.0.attn_q.bias" in infos,
        o_bias=is_gpt2 or "blk.0.attn_output.bias" in infos,
        mlp_bias=is_gpt2 or "blk.0.ffn_down.bias" in infos,
        qk_norm=architecture == "qwen3" or "blk.0.attn_q_norm.weight" in infos,
    )


def _uniform_integer(metadata: Metadata, key: str, *, default: int | None = None) -> int:
    """Read a number that may be stored once per layer; layers that differ are not supported."""
    per_layer = metadata.find(key)
    if not isinstance(per_layer, list):
        return metadata.integer(key, default=default)
    if not per_layer or any(value != per_layer[0] for value in per_layer):
        raise CheckpointError(f"{metadata.path}: {key} differs between layers, which is not supported")
    return Metadata({key: per_layer[0]}, path=metadata.path).integer(key)


def _read_head_dim(metadata: Metadata, prefix: str, hidden_size: int, num_heads: int) -> int:
    head_dim = metadata.integer(f"{prefix}.attention.key_length", default=hidden_size // max(num_heads, 1))
    if metadata.integer(f"{prefix}.attention.value_length", default=head_dim) != head_dim:
        raise CheckpointError(f"{metadata.path}: keys and values of different length are not supported")
    if prefix != "gpt2" and metadata.integer(f"{prefix}.rope.dimension_count", default=head_dim) != head_dim:
        raise CheckpointError(
            f"{metadata.path}: {prefix}.rope.dimension_count other than the head size {head_dim} "
            "(partial rotary embedding) is not supported"
        )
    return head_dim


def _read_rope(metadata: Metadata, prefix: str, freq_factors: tuple[float, ...] | None) -> RopeConfig:
    theta = metadata.real(f"{prefix}.rope.freq_base", default=10_000.0)
    scaling = metadata.text(f"{prefix}.rope.scaling.type", default="none")
    factor = metadata.find_real(f"{prefix}.rope.scaling.factor")
    if factor is None:  # the old key, from before scaling had types
        factor = metadata.real(f"{prefix}.rope.scale_linear", default=1.0)
        scaling = "linear" if scaling == "none" and factor != 1.0 else scaling
    if scaling == "none" or (scaling == "linear" and factor in (0.0, 1.0)):
        return RopeConfig(theta=theta, freq_factors=freq_factors)
    if scaling == "linear":
        return RopeConfig(theta=theta, scaling=RopeScaling.LINEAR, factor=factor, freq_factors=freq_factors)
    if scaling == "yarn":
        return _read_yarn(metadata, prefix, theta, factor)
    raise CheckpointError(
        f"{metadata.path}: {prefix}.rope.scaling.type {shorten(scaling)} is not supported; "
        "supported: none, linear, yarn"
    )


def _read_yarn(metadata: Metadata, prefix: str, theta: float, factor: float) -> RopeConfig:
    key = f"{prefix}.rope.scaling"
    extra = metadata.real(f"{key}.attn_factor", default=1.0)  # on top of the factor that YaRN prescribes
    if factor < 1.0:  # its logarithm is needed below
        raise CheckpointError(f"{metadata.path}: {key}.factor must be at least 1, got {factor}")
    return RopeConfig(
        theta=theta,
        scaling=RopeScaling.YARN,
        factor=factor,
        original_max_position_embeddings=metadata.integer(f"{key}.original_context_length"),
        beta_fast=metadata.real(f"{key}.yarn_beta_fast", default=32.0),
        beta_slow=metadata.real(f"{key}.yarn_beta_slow", default=1.0),
        attention_factor=None if extra == 1.0 else extra * (0.1 * math.log(factor) + 1.0),
    )


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


def _stored_tensor(
    file: GGUFFile, info: GGUFTensorInfo, row_order: npt.NDArray[np.intp] | None
) -> GGUFTensor:
    if not can_dequantize(info.format):
        raise CheckpointError(
            f"{file.path}: tensor {shorten(info.name)} has the format {info.format}, which is not supported; "
            "use a model in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K-quant"
        )
    return GGUFTensor(
        name=info.name,
        path=file.path,
        shape=info.shape,
        format=info.format,
        stored_rows=file.rows(info),
        row_order=row_order,
    )


def _row_order(info: GGUFTensorInfo, architecture: str, config: ModelConfig) -> npt.NDArray[np.intp] | None:
    """Say where our rows lie in a query or key projection of architecture `llama`.

    Rotation pairs elements i and i + d/2 of a head for us, 2i and 2i + 1 in llama.cpp, whose converter
    therefore stores row (half, i) as row (i, half). Qwen's are stored as they are.
    """
    parts = info.name.split(".")
    if architecture != "llama" or parts[0] != "blk" or parts[2:3] not in (["attn_q"], ["attn_k"]):
        return None
    num_heads = config.num_heads if parts[2] == "attn_q" else config.num_kv_heads
    if info.shape[0] != num_heads * config.head_dim:
        return None  # misshapen: the model says so
    stored = np.arange(info.shape[0]).reshape(num_heads, config.head_dim // 2, 2)
    order: npt.NDArray[np.intp] = stored.swapaxes(1, 2).ravel()
    return order
