"""Small models in the CPU kernels, beside the same models in plain torch."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gguf import quants

from engine.kernels.cpu.fused_decoder import FusedDecoder
from engine.kernels.cpu.library import (
    KernelContext,
    KVKind,
    RowsFormat,
    available_instruction_sets,
    load_library,
)
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.loading.backend import ExecutorShape, ModelSource, TorchBackend
from engine.model.attention_tiles import QuerySpan
from engine.model.model_input import ModelInput
from engine.model.weights import Weights
from tests.tiny import random_checkpoint

CPU = torch.device("cpu")
BLOCK_SIZE = 16
NUM_BLOCKS = 256


def pytest_collection_modifyitems(items):
    if load_library() is None:
        for item in items:
            if "engine/kernels" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="there was no C++ compiler to build the kernels"))


def instruction_sets():
    """Those that this processor has, and that the environment allows."""
    return list(available_instruction_sets()) if load_library() is not None else []


@dataclass(frozen=True)
class QuantizedTensor:
    """A StoredTensor in blocks, as a GGUF file holds them."""

    raw: np.ndarray
    shape: tuple[int, ...]
    format: str

    def dequantize(self):
        return torch.from_numpy(getattr(quants, self.format).dequantize_rows(self.raw)).reshape(self.shape)


def quantized(checkpoint, tensor_format):
    """The checkpoint with its matrices in blocks; the same numbers for the kernels and for torch."""
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and "positions" not in name and tensor.shape[-1] % 32 == 0:
            raw = getattr(quants, tensor_format).quantize_rows(tensor.dequantize().numpy())
            tensors[name] = QuantizedTensor(raw.reshape(tensor.shape[0], -1), tensor.shape, tensor_format)
    return tensors


class Fused:
    """A random model in the kernels, with a KV storage of its own."""

    def __init__(
        self,
        config,
        *,
        tensor_format=None,
        plain=RowsFormat.F32,
        kv_kind=KVKind.F32,
        num_threads=2,
        instruction_set=None,
        quantization=None,
        tensors=None,
    ):
        checkpoint = random_checkpoint(config)
        self.tensors = tensors or checkpoint.tensors
        if tensor_format is not None:
            self.tensors = quantized(checkpoint, tensor_format)
        self.context = KernelContext(num_threads=num_threads, instruction_set=instruction_set)
        weights = Weights(self.tensors, dtype=torch.float32, device=CPU)
        self.config = config
        self.model = FusedDecoder(
            config,
            weights,
            context=self.context,
            max_positions=config.max_position_embeddings,
            plain=plain,
            quantization=quantization,
        )
        weights.finish()
        self.storage = TiledKVStorage(
            num_layers=config.num_layers,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kind=kv_kind,
        )

    def logits(self, *spans):
        """Logits of all tokens of spans (token_ids, first_position, block_ids) that run together."""
        return self.model.compute_logits(self.model(model_input(*spans), self.storage))


class InTorch:
    """The same model in plain torch."""

    def __init__(self, config, tensors=None, *, dtype=torch.float32):
        backend = TorchBackend(CPU, dtype)
        weights = Weights(tensors or random_checkpoint(config).tensors, dtype=dtype, device=CPU)
        source = ModelSource(
            name="tiny", config=config, weights=weights, max_positions=config.max_position_embeddings
        )
        shape = ExecutorShape(
            vocab_size=config.vocab_size,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            max_model_len=config.max_position_embeddings,
        )
        self.model = backend.load(source, None).build_executor(shape).model

    @torch.inference_mode()
    def logits(self, *spans):
        return self.model.compute_logits(self.model(model_input(*spans))).float()


def model_input(*spans):
    token_ids, queries = [], []
    for ids, first_position, block_ids in spans:
        queries.append(QuerySpan(len(token_ids), len(ids), first_position, block_ids))
        token_ids += ids
    return ModelInput(token_ids, queries, list(range(len(token_ids))), BLOCK_SIZE, CPU)


def blocks(number, num_tokens):
    """A block table of its own for sequence `number`, its blocks scattered over the pool."""
    count = -(-num_tokens // BLOCK_SIZE)
    return [(7 + number * 37 + 11 * i) % NUM_BLOCKS for i in range(count)]


def random_tokens(seed, count, vocab_size):
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()
