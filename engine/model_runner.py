"""ModelRunner: owns model, KV storage and sampler; runs one step's tensors through them."""

import torch

from engine.batch import Batch
from engine.kv_cache.kv_storage import KVStorage
from engine.model.registry import Model
from engine.model_input import build_model_input
from engine.sampling.sampler import Sampler, SamplerOutput


class ModelRunner:
    """The only place where a step touches the device."""

    def __init__(
        self,
        model: Model,
        kv_storage: KVStorage,
        sampler: Sampler,
        *,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.kv_storage = kv_storage
        self.sampler = sampler
        self.block_size = block_size
        self.device = device

    @torch.inference_mode()
    def execute(self, batch: Batch) -> SamplerOutput:
        """Run a batch and choose a token for each request that reached its end."""
        model_input = build_model_input(batch, block_size=self.block_size, device=self.device)
        logits = self.model(model_input, self.kv_storage)
        return self.sampler(logits, batch.sampled_requests)
