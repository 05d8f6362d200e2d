"""Mistral: a Llama without biases, whose window must reach over the context. GGUF calls it "llama"."""

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.fields import check_sliding_window
from engine.checkpoint.architectures.llama import (
    OPTIONAL_FIELDS,
    SHARED_DEFAULTS,
    TENSOR_NAMES,
    read_llama_config,
    read_llama_gguf_config,
)
from engine.checkpoint.metadata import Metadata
from engine.checkpoint.model_config import ModelConfig


def _read_config(metadata: Metadata) -> ModelConfig:
    config = read_llama_config(metadata, MISTRAL.name)
    check_sliding_window(metadata, MISTRAL.name, config.max_position_embeddings)
    return config


MISTRAL = Architecture(
    name="mistral",
    read_config=_read_config,
    read_gguf_config=read_llama_gguf_config,
    tensor_names=TENSOR_NAMES,
    field_defaults={
        **SHARED_DEFAULTS,
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    optional_fields=OPTIONAL_FIELDS,
    neutral_fields=dict.fromkeys(("attention_bias", "mlp_bias"), (0.0, False)),
    has_sliding_window=True,
    has_interleaved_heads=True,
)
