"""Qwen2, a Llama with biases on q, k and v, and Qwen3, which norms each head's query and key instead."""

from dataclasses import replace

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.fields import check_sliding_window
from engine.checkpoint.architectures.llama import (
    OPTIONAL_FIELDS,
    SHARED_DEFAULTS,
    TENSOR_NAMES,
    read_llama_config,
    read_llama_gguf_config,
    with_attention_bias,
)
from engine.checkpoint.gguf_config import GGUFHeader
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import CheckpointError

_DEFAULTS = {
    **SHARED_DEFAULTS,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_NO_BIAS = (0.0, False)


def _read_qwen2(metadata: Metadata) -> ModelConfig:
    # biases on q, k and v whatever the file says
    return replace(_read_config(metadata, QWEN2.name), qkv_bias=True)


def _read_qwen3(metadata: Metadata) -> ModelConfig:
    return replace(with_attention_bias(_read_config(metadata, QWEN3.name), metadata), qk_norm=True)


def _read_config(metadata: Metadata, name: str) -> ModelConfig:
    config = read_llama_config(metadata, name)
    if _uses_sliding_window(metadata):
        check_sliding_window(metadata, name, config.max_position_embeddings)
    return config


def _uses_sliding_window(metadata: Metadata) -> bool:
    has_window = metadata.boolean("use_sliding_window", default=False) and "sliding_window" in metadata
    num_layers = metadata.integer("num_hidden_layers")
    layer_types = metadata.find_list("layer_types")
    if layer_types is None:
        return has_window and metadata.integer("max_window_layers") < num_layers
    _check_layer_types(metadata, layer_types, num_layers)
    is_sliding = "sliding_attention" in layer_types
    if is_sliding and not has_window:
        raise CheckpointError(
            f"{metadata.path}: layer_types has sliding_attention, but there is no window: use_sliding_window "
            "must be true and sliding_window a number, or every layer full_attention"
        )
    return is_sliding


def _check_layer_types(metadata: Metadata, layer_types: list[object], num_layers: int) -> None:
    if len(layer_types) != num_layers:
        raise CheckpointError(
            f"{metadata.path}: layer_types must have {num_layers} entries, one per layer, "
            f"got {len(layer_types)}"
        )
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(
                f"{metadata.path}: layer_types {shorten(kind)} is not supported; supported: full_attention"
            )


def _read_qwen2_gguf(header: GGUFHeader) -> ModelConfig:
    return replace(read_llama_gguf_config(header), qkv_bias=True)


def _read_qwen3_gguf(header: GGUFHeader) -> ModelConfig:
    return replace(read_llama_gguf_config(header), qk_norm=True)


QWEN2 = Architecture(
    name="qwen2",
    read_config=_read_qwen2,
    read_gguf_config=_read_qwen2_gguf,
    tensor_names=TENSOR_NAMES,
    field_defaults=_DEFAULTS,
    optional_fields=OPTIONAL_FIELDS,
    neutral_fields={"mlp_bias": _NO_BIAS},
    has_layer_types=True,
    has_sliding_window=True,
    pre_tokenizer="qwen2",
)
QWEN3 = Architecture(
    name="qwen3",
    read_config=_read_qwen3,
    read_gguf_config=_read_qwen3_gguf,
    tensor_names=TENSOR_NAMES,
    field_defaults={**_DEFAULTS, "head_dim": 128},
    optional_fields=OPTIONAL_FIELDS,
    neutral_fields={
        "mlp_bias": _NO_BIAS,
        **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), (True,)),
    },
    has_layer_types=True,
    has_sliding_window=True,
    pre_tokenizer="qwen2",
)
