"""Models whose matrices stay in blocks of GGUF: the widened model's answers, to the bit, in less memory."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import engine.model.weights
from engine.checkpoint.stored_tensor import GGUFTensor
from engine.kernels.cuda.quantized_projection import QuantizedProjection
from engine.model.weights import Weights
from tests.cuda_engine import cuda_engine
from tests.engine.test_same_tokens import mixed_requests
from tests.tiny import LLAMA, generate, generation, random_checkpoint

CONFIG = replace(
    LLAMA, hidden_size=256, intermediate_size=256, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64
)


def in_blocks(checkpoint, formats):
    """The checkpoint with matrices in blocks: of the first format whose key is in a tensor's name."""
    tensors = dict(checkpoint.tensors)
    for name, stored in checkpoint.tensors.items():
        found = next((kind for part, kind in formats.items() if part in name), None)
        if found is not None and len(stored.shape) == 2:
            kind = gguf.GGMLQuantizationType[found]
            rows = np.ascontiguousarray(gguf.quants.quantize(stored.dequantize().numpy(), kind))
            tensors[name] = GGUFTensor(
                name=name, path=Path("tiny.gguf"), shape=stored.shape, format=found, stored_rows=rows
            )
    return replace(checkpoint, tensors=tensors)


def kept(loaded):
    """Which products of the first layer and the head are multiplied in blocks."""
    decoder = loaded.executor.runner.decoder
    layer = decoder.layers[0]
    products = {"qkv": layer.qkv, "output": layer.output, "up": layer.up, "down": layer.down}
    products["head"] = decoder.head
    return {name for name, product in products.items() if isinstance(product, QuantizedProjection)}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_the_answers_of_the_widened_model(kind, tied):
    config = replace(CONFIG, tie_word_embeddings=tied)
    checkpoint = in_blocks(random_checkpoint(config), {"proj": kind, "embed_tokens": kind, "lm_head": kind})
    requests = [*mixed_requests(3), generation(range(200), max_tokens=4)]
    settings = {"checkpoint": checkpoint, "max_num_batched_tokens": 256}
    widened = cuda_engine(config, **settings)
    blocks = cuda_engine(config, keeps_blocks=True, **settings)
    assert kept(widened.engine) == set()
    assert kept(blocks.engine) == {"qkv", "output", "up", "down", "head"}
    assert generate(blocks.engine, *requests) == generate(widened.engine, *requests)
    assert blocks.info.weight_bytes < widened.info.weight_bytes


def test_matrices_of_different_formats_are_widened_together():
    formats = {"v_proj": "Q8_0", "proj": "Q4_0"}
    checkpoint = in_blocks(random_checkpoint(CONFIG), formats)
    mixed = cuda_engine(CONFIG, checkpoint=checkpoint, keeps_blocks=True).engine
    assert kept(mixed) == {"output", "up", "down"}
    widened = cuda_engine(CONFIG, checkpoint=checkpoint).engine
    assert generate(mixed, *mixed_requests(2)) == generate(widened, *mixed_requests(2))


def test_formats_that_no_kernel_multiplies_are_widened():
    checkpoint = in_blocks(random_checkpoint(CONFIG), {"proj": "BF16"})
    assert kept(cuda_engine(CONFIG, checkpoint=checkpoint, keeps_blocks=True).engine) == set()


def test_only_blocks_that_are_kept_are_read_on_the_host(monkeypatch):
    """Everything else is checked on the device as it arrives: reading it here too would double the start."""
    read = []
    stored = Weights.stored

    def noted(weights, name, *shape):
        read.append(name)
        return stored(weights, name, *shape)

    monkeypatch.setattr(engine.model.weights, "streams_to", lambda device: True)
    monkeypatch.setattr(Weights, "stored", noted)
    for formats in ({}, {"down_proj": "Q4_0"}):
        read.clear()
        config = replace(CONFIG, tie_word_embeddings=False)
        cuda_engine(config, checkpoint=in_blocks(random_checkpoint(config), formats), keeps_blocks=True)
        assert read == [f"layers.0.mlp.{name}.weight" for name in formats]
