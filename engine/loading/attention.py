"""The model a second time, as the plain reference, to show its attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.checkpoint.checkpoint import Checkpoint
from engine.interface.attention import MAX_ATTENTION_TOKENS, AttentionModel
from engine.interface.cancellation import Cancellation
from engine.loading.backend import TorchBackend
from engine.loading.model_source import ModelSource
from engine.model.attention_probabilities import attention_probabilities
from engine.model.decoder import Decoder
from engine.model.weights import Weights


def load_attention_model(checkpoint: Checkpoint) -> AttentionModel:
    """Load the weights in float32 on the CPU, however they are served.

    Raises ConfigError where memory is short, CheckpointError.
    """
    device, config = torch.device("cpu"), checkpoint.config
    weights = Weights(checkpoint.tensors, dtype=torch.float32, device=device, path=checkpoint.path)
    max_positions = min(MAX_ATTENTION_TOKENS, config.max_position_embeddings)
    source = ModelSource(
        name=str(checkpoint.path), config=config, weights=weights, max_positions=max_positions
    )
    decoder = TorchBackend(device, torch.float32).load(source, None).target
    return _ReferenceModel(decoder, weights.num_bytes)


@dataclass(frozen=True)
class _ReferenceModel:
    """A Decoder whose attention can be looked at."""

    decoder: Decoder
    num_bytes: int

    @property
    def num_layers(self) -> int:
        return self.decoder.config.num_layers

    @property
    def num_heads(self) -> int:
        return self.decoder.config.num_heads

    def attention(self, token_ids: Sequence[int], layer: int, cancellation: Cancellation) -> bytes:
        found = attention_probabilities(self.decoder, token_ids, layer, cancellation)
        return found.numpy().astype("<f4").tobytes()
