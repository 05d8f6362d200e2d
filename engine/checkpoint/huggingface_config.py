"""config.json of a Hugging Face folder, to ModelConfig."""

from engine.checkpoint.architectures.architecture import Architecture
from engine.checkpoint.architectures.registry import ARCHITECTURES, find_architecture
from engine.checkpoint.foreign_fields import check_foreign_fields
from engine.checkpoint.metadata import Metadata, shorten
from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import CheckpointError


def read_architecture(metadata: Metadata) -> Architecture:
    """Return the family of a config.json; raises CheckpointError for one that is not supported."""
    name = metadata.text("model_type")
    return find_architecture(name, among=ARCHITECTURES, key="model_type", path=metadata.path)


def read_model_config(metadata: Metadata, architecture: Architecture) -> ModelConfig:
    """Read config.json; a field that it leaves out has the default of the family's configuration class.

    Raises CheckpointError, or ConfigError for sizes that contradict each other, when the model is of a kind
    that is not supported.
    """
    quantization = metadata.find_section("quantization_config")
    if quantization is not None:
        method = shorten(quantization.find("quant_method"))
        raise CheckpointError(
            f"{metadata.path}: quantised weights ({method}) are not supported in this format; "
            "use the original model or a GGUF file"
        )
    config = architecture.read_config(architecture.with_defaults(metadata))
    check_foreign_fields(metadata, architecture, config)
    return config
