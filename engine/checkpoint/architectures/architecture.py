"""Architecture: what there is to know of a model family to read its files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from engine.checkpoint.gguf_config import GGUFHeader
from engine.checkpoint.metadata import Metadata
from engine.checkpoint.model_config import ModelConfig
from engine.checkpoint.names import TensorNames


def _no_fields() -> Mapping[str, tuple[object, ...]]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model family, as Hugging Face and llama.cpp store it.

    transformers writes a whole config.json, other programs leave out what equals the default of the family's
    configuration class, so an absent field and a null one differ: `sliding_window` of a Mistral is 4,096 when
    absent and off when null. `field_defaults` are those of transformers 5, and a test compares them.
    """

    name: str  # `model_type` in config.json, `general.architecture` in a GGUF file
    read_config: Callable[[Metadata], ModelConfig]  # from a config.json whose absent fields have defaults
    read_gguf_config: Callable[[GGUFHeader], ModelConfig]
    tensor_names: TensorNames
    field_defaults: Mapping[str, object]  # those that are neither null nor false
    optional_fields: frozenset[str]  # fields that are read and have no default
    neutral_fields: Mapping[str, tuple[object, ...]] = field(default_factory=_no_fields)
    """Fields of other families, with the values that leave the forward pass of this one as it is."""
    has_layer_types: bool = False  # layers may differ in their attention
    has_sliding_window: bool = False
    transposed_weights: tuple[str, ...] = ()  # ends of the names of weights stored as [in, out]
    pre_tokenizer: Literal["gpt-2", "qwen2"] | None = None  # of vocab.json and merges.txt
    has_interleaved_heads: bool = False  # GGUF stores rows of q and k in the order llama.cpp rotates them

    @property
    def known_fields(self) -> frozenset[str]:
        """The fields of config.json that are read."""
        return self.optional_fields | frozenset(self.field_defaults)

    def with_defaults(self, metadata: Metadata) -> Metadata:
        """Return the fields of a config.json with the family's defaults in the place of absent ones."""
        return Metadata({**self.field_defaults, **metadata.values}, path=metadata.path)
