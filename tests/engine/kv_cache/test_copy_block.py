"""copy_block of both storages: the whole block, and nothing beside it."""

import ctypes

import pytest
import torch

from engine.kernels.cpu.library import KVKind, load_library
from engine.kernels.cpu.tiled_kv_storage import TiledKVStorage
from engine.model.kv_storage import KVStorage

SHAPE = {"num_layers": 3, "num_blocks": 5, "num_kv_heads": 2, "head_dim": 8}


def test_torch_storage():
    storage = KVStorage(**SHAPE, block_size=4, dtype=torch.bfloat16, device=torch.device("cpu"))
    parts = [part for layer in storage.layers for part in (layer.keys, layer.values)]
    for part in parts:
        part.copy_(torch.randn(part.shape))
    expected = [part.clone() for part in parts]
    storage.copy_block(1, 3)
    for part, before in zip(parts, expected, strict=True):
        before[:, 3] = before[:, 1]
        assert torch.equal(part, before)


@pytest.mark.skipif(load_library() is None, reason="there was no C++ compiler")
@pytest.mark.parametrize("kind", list(KVKind))
@pytest.mark.parametrize("block_size", [16, 32])
def test_tiled_storage(kind, block_size):
    storage = TiledKVStorage(**SHAPE, block_size=block_size, kind=kind)
    size = storage.num_bytes // storage.num_blocks
    content = [bytes([number + 1]) * size for number in range(5)]
    ctypes.memmove(storage.tiles.base, b"".join(content), storage.num_bytes)
    storage.copy_block(1, 3)
    content[3] = content[1]
    assert ctypes.string_at(storage.tiles.base, storage.num_bytes) == b"".join(content)
