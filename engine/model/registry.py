"""Which class runs which architecture."""

from typing import Protocol

from torch import Tensor

from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import CheckpointError
from engine.model.gpt2 import GPT2
from engine.model.kv_storage import KVStorage
from engine.model.llama import Llama
from engine.model.model_input import ModelInput
from engine.model.weights import Weights


class Model(Protocol):
    """A model in torch."""

    config: ModelConfig
    max_positions: int

    def __call__(self, model_input: ModelInput, kv_storage: KVStorage) -> Tensor:
        """Return hidden states [num_tokens, ...] and write this step's keys and values."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Map rows of hidden states to logits [num_rows, vocab_size]."""


def build_model(config: ModelConfig, weights: Weights, *, max_positions: int) -> Model:
    """Build the model of `config.architecture` from its weights, all of which must be used."""
    architectures: dict[str, type[GPT2] | type[Llama]] = {"gpt2": GPT2, "llama": Llama}
    if config.architecture not in architectures:
        known = ", ".join(sorted(architectures))
        raise CheckpointError(f"architecture {config.architecture!r} is not supported; known: {known}")
    model = architectures[config.architecture](config, weights, max_positions=max_positions)
    weights.finish()
    return model
