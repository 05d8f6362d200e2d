"""Weights that go to a device piece by piece: the values of dequantize(), without its memory."""

import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format
from safetensors.torch import load_file, save_file

import engine.model.weights
from engine.checkpoint import load_checkpoint, streaming
from engine.checkpoint.stored_tensor import GGUF_FORMATS, PLAIN_FORMATS, GGUFTensor, TorchTensor
from engine.checkpoint.streaming import stream_tensor
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError
from engine.loading.loader import build_engine
from engine.model.linear import take_stacked
from engine.model.weights import Weights
from tests.tiny import GPT2, LLAMA, InMemoryTensor, generate, generation, random_checkpoint

PAIR = Path(__file__).parents[2] / "assets/pair/target"
ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Three rows of 256 at a time, so that tests see several pieces and a rest."""
    monkeypatch.setattr(streaming, "PIECE_BYTES", 3 * 256 * 4)


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr(engine.model.weights, "streams_to", lambda _: True)


def gguf_tensor(tensor_format, shape, *, row_order=None):
    """Return a tensor of random bytes, none of which makes a value that is not finite."""
    block_size, num_bytes = gguf.GGML_QUANT_SIZES[Format[tensor_format]]
    row_bytes = shape[1] // block_size * num_bytes if len(shape) == 2 else num_bytes
    for seed in range(1000):
        rows = np.random.default_rng(seed).integers(0, 256, (shape[0], row_bytes), dtype=np.uint8)
        if tensor_format in PLAIN_FORMATS:
            values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            rows = values.to(PLAIN_FORMATS[tensor_format]).view(torch.uint8).numpy().reshape(shape[0], -1)
        rows.flags.writeable = False  # as a mapped file
        tensor = GGUFTensor(
            name="blk.0.up",
            path=Path("m.gguf"),
            shape=shape,
            format=tensor_format,
            stored_rows=rows,
            row_order=row_order,
        )
        if torch.isfinite(tensor.dequantize()).all():
            return tensor
    raise AssertionError("no finite values found")


def torch_tensor(values, *, transposed=False):
    shape = tuple(values.t().shape) if transposed else tuple(values.shape)
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return TorchTensor(
        name="up",
        path=Path("m.safetensors"),
        shape=shape,
        format=names[values.dtype],
        load=lambda: values,
        transposed=transposed,
    )


def streamed_copy(stored, dtype):
    destination = torch.full(stored.shape, float("nan"), dtype=dtype)
    stream_tensor("up", stored, destination)
    return destination


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensor_format", GGUF_FORMATS)
def test_every_format_comes_as_it_is_dequantised(tensor_format, dtype, monkeypatch):
    row_length = max(8, gguf.GGML_QUANT_SIZES[Format[tensor_format]][0])
    monkeypatch.setattr(streaming, "PIECE_BYTES", 3 * row_length * 4)
    order = np.random.default_rng(1).permutation(7)
    stored = gguf_tensor(tensor_format, (7, row_length), row_order=order)
    assert torch.equal(streamed_copy(stored, dtype), stored.dequantize().to(dtype))


@pytest.mark.parametrize("tensor_format", PLAIN_FORMATS)
def test_a_vector_of_a_gguf_file(tensor_format):
    stored = gguf_tensor(tensor_format, (1000,))
    assert torch.equal(streamed_copy(stored, torch.float32), stored.dequantize())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stored_as", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 256), (256, 7), (1000,), (1, 2), (0, 4), (3, 2, 2)])
def test_plain_tensors_come_as_they_are_stored(shape, stored_as, transposed):
    if transposed and len(shape) != 2:
        return
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(stored_as)
    stored = torch_tensor(values, transposed=transposed)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(streamed_copy(stored, dtype), stored.dequantize().to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 6])
def test_a_value_that_is_not_finite_is_found_in_any_piece(row, value):
    values = torch.zeros(7, 256)
    values[row, 255] = value
    with pytest.raises(CheckpointError, match=r"^m\.safetensors: tensor up holds NaN or infinity"):
        streamed_copy(torch_tensor(values), torch.float16)


def test_what_float16_cannot_hold_is_another_error():
    values = torch.zeros(7, 256)
    values[6, 0] = 1e6
    with pytest.raises(CheckpointError, match="too large for float16; use --dtype bfloat16 or float32"):
        streamed_copy(torch_tensor(values), torch.float16)
    assert streamed_copy(torch_tensor(values), torch.bfloat16)[6, 0] > 9e5


def test_one_piece_at_a_time_is_held(monkeypatch):
    alive, most, read_rows = [0], [0], TorchTensor.read_rows

    def counted(stored, start, stop):
        rows = read_rows(stored, start, stop).clone()
        alive[0] += rows.nbytes
        most[0] = max(most[0], alive[0])
        weakref.finalize(rows, release, rows.nbytes)
        return rows

    def release(num_bytes):
        alive[0] -= num_bytes

    monkeypatch.setattr(TorchTensor, "read_rows", counted)
    streamed_copy(torch_tensor(torch.zeros(100, 256)), torch.bfloat16)
    assert alive == [0]
    assert most[0] <= 2 * streaming.PIECE_BYTES, "the next is read while the last one is still named"


MEASURED_LOAD = """
import sys, torch
from pathlib import Path
from torch.utils._python_dispatch import TorchDispatchMode
from engine.checkpoint.huggingface import _open_shard, _open_tensor
from engine.checkpoint import streaming

streaming.PIECE_BYTES = 4 * 2**20

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

class Peak(TorchDispatchMode):
    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, anonymous())
        return result

folder = Path(sys.argv[1])
torch.set_num_threads(1)
with Peak():  # imports what it needs
    torch.isfinite(torch.ones(2))
for is_transposed in (False, True):
    stored = _open_tensor(_open_shard(folder / "model.safetensors", None), "up", is_transposed)
    num_values = stored.shape[0] * stored.shape[1]
    device = torch.from_file(str(folder / "device"), shared=True, size=num_values, dtype=torch.bfloat16)
    before = anonymous()
    with Peak() as peak:
        streaming.stream_tensor("up", stored, device.view(stored.shape))
    print(peak.most - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
def test_no_copy_of_a_large_tensor_is_made_in_host_memory(tmp_path):
    """A mapped file stands in for the device: what is written there is no memory of the process's own."""
    values = torch.zeros(12_000, 4_096, dtype=torch.bfloat16)
    save_file({"up": values}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEASURED_LOAD, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    plain, transposed = map(int, finished.stdout.split())
    assert max(plain, transposed) < values.nbytes / 3, "some pieces of 4 MiB and what is made of them"


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_streamed_model_answers_as_before(config, monkeypatch):
    checkpoint, settings = (
        random_checkpoint(config),
        {"device": "cpu", "kernels": "torch", "dtype": "float32"},
    )

    def answer():
        loaded = build_engine(checkpoint, EngineConfig(**settings))
        return generate(loaded.engine, generation(range(20))), loaded.info.weight_bytes

    expected = answer()
    monkeypatch.setattr(engine.model.weights, "streams_to", lambda _: True)
    assert answer() == expected


def test_a_streamed_checkpoint_with_a_broken_weight_is_refused_by_name(streamed, tmp_path):
    path = shutil.copytree(PAIR, tmp_path / "pair") / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors[name][3, 4] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {name} holds NaN or infinity"):
        build_engine(load_checkpoint(str(path.parent)), EngineConfig(device="cpu", kernels="torch"))


def test_streaming_knows_missing_misshapen_and_left_over_tensors(streamed):
    weights = Weights({"a": InMemoryTensor(torch.ones(2, 3))}, dtype=torch.float32, device=CPU)
    with pytest.raises(CheckpointError, match="tensor b is missing"):
        weights.take("b", 2, 3)
    with pytest.raises(CheckpointError, match=r"has shape \[2, 3\], but the configuration says \[3, 2\]"):
        weights.take("a", 3, 2)
    with pytest.raises(CheckpointError, match="no place for it"):
        weights.finish()
    weights.take("a", 2, 3)
    weights.finish()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_stacked_tensors_lie_below_one_another_in_one(is_streamed, monkeypatch):
    monkeypatch.setattr(engine.model.weights, "streams_to", lambda _: is_streamed)
    parts = {name: torch.randn(rows, 4) for name, rows in (("q", 3), ("k", 2), ("v", 2))}
    stored = {name: InMemoryTensor(values) for name, values in parts.items()}
    weights = Weights(stored, dtype=torch.bfloat16, device=CPU)
    stacked = take_stacked(weights, {"q": 3, "k": 2, "v": 2}, 4)
    assert torch.equal(stacked, torch.cat(list(parts.values())).to(torch.bfloat16))
    assert weights.num_bytes == stacked.nbytes
