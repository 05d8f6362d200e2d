"""NaN and infinity in a checkpoint are found while it is loaded, whatever format hides them."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format
from safetensors.torch import load_file, save_file

from engine.checkpoint import load_checkpoint
from engine.checkpoint.finite import check_finite
from engine.checkpoint.stored_tensor import GGUF_FORMATS, GGUFTensor
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.loading.loader import build_engine

NUM_BLOCKS = 8
PAIR = Path(__file__).parents[2] / "assets/pair/target"


@pytest.fixture
def pair_copy(tmp_path):
    return shutil.copytree(PAIR, tmp_path / "pair")


def gguf_tensor(tmp_path, tensor_format, rows):
    block_size, _ = gguf.GGML_QUANT_SIZES[Format[tensor_format]]
    return GGUFTensor(
        name="blk.0.up",
        path=tmp_path / "m.gguf",
        shape=(1, NUM_BLOCKS * block_size),
        format=tensor_format,
        stored_rows=rows,
    )


def is_refused(tensor):
    try:
        check_finite("up", tensor)
    except CheckpointError:
        return True
    return False


@pytest.mark.parametrize("tensor_format", GGUF_FORMATS)
def test_every_format_agrees_with_its_dequantised_values(tmp_path, tensor_format):
    """Of random bytes some blocks have scales that are not finite, and some have none."""
    _, num_bytes = gguf.GGML_QUANT_SIZES[Format[tensor_format]]
    random = np.random.default_rng(7)
    seen = set()
    for _ in range(300):
        rows = random.integers(0, 256, (1, NUM_BLOCKS * num_bytes), dtype=np.uint8)
        tensor = gguf_tensor(tmp_path, tensor_format, rows)
        is_finite = bool(torch.isfinite(tensor.dequantize()).all())
        assert is_refused(tensor) is not is_finite
        seen.add(is_finite)
    assert seen == {True, False}, "the test sees both"


def test_the_largest_values_are_finite(tmp_path):
    rows = np.full((1, NUM_BLOCKS), np.finfo(np.float32).max, dtype=np.float32).view(np.uint8)
    assert not is_refused(gguf_tensor(tmp_path, "F32", rows))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_checkpoint_with_one_broken_weight_is_refused_by_the_name_of_file_and_tensor(
    pair_copy, kernels, value
):
    path = pair_copy / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors[name][3, 4] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        build_engine(load_checkpoint(str(pair_copy)), EngineConfig(device="cpu", kernels=kernels))


def test_what_float16_cannot_hold_is_refused_with_the_dtypes_that_can(pair_copy):
    path = pair_copy / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    config = EngineConfig(device="cpu", kernels="torch", dtype="float16", kv_cache_memory=2**22)
    with pytest.raises(CheckpointError, match="too large for float16; use --dtype bfloat16"):
        build_engine(load_checkpoint(str(pair_copy)), config)
