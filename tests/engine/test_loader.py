"""Automatic choices: device, dtype, threads, context length, KV memory; and what they refuse."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import engine.loading.backend
from engine.checkpoint.checkpoint import Checkpoint
from engine.interface.config import EngineConfig
from engine.interface.errors import CheckpointError, ConfigError
from engine.loading.kv_memory import available_memory, choose_num_blocks
from engine.loading.loader import build_engine
from engine.loading.machine import choose_device, choose_dtype, choose_num_threads
from engine.model.kv_storage import KVStorage
from tests.tiny import GPT2, LLAMA, InMemoryTensor, generate, generation, random_checkpoint, tiny_engine


def test_the_engine_says_what_it_chose():
    info = tiny_engine(max_num_seqs=2, max_model_len=100).info
    assert (info.device, info.dtype, info.max_model_len, info.block_size) == ("cpu", "float32", 100, 16)
    assert info.num_kv_blocks == 2 * 7, "no more than two requests of 100 tokens could use"
    assert info.kv_cache_bytes == info.num_kv_blocks * 16 * 2 * 2 * 2 * 16 * 4
    assert info.weight_bytes > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 513}, "max_model_len must be at most 512, the model's own context, got 513"),
        (
            {"max_model_len": 512, "kv_cache_memory": 50_000},
            "max_model_len of 512 tokens needs more KV memory",
        ),
        ({"kv_cache_memory": 100}, "kv_cache_memory of 100 bytes is less than one block"),
        ({"block_size": 48}, "block_size must divide 128, got 48"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int3'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"stream_interval": -0.5}, "stream_interval must be at least 0 seconds, got -0.5"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_engine(**settings)


def test_a_small_pool_lowers_the_context_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        loaded = tiny_engine(kv_cache_memory=16 * 2 * 2 * 2 * 16 * 4 * 3)
    assert loaded.info.max_model_len == 48
    assert "max_model_len lowered from 512" in caplog.text
    assert len(generate(loaded.engine, generation(range(40)))[0]) == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_clear_error():
    with pytest.raises(ConfigError, match="no CUDA GPU; use 'cpu'"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


def test_dtypes_by_name():
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) is torch.float32
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_threads_follow_the_container_quota(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    quota = tmp_path / "cpu.max"
    for text, expected in (("300000 100000", 3), ("max 100000", 8), ("50000 100000", 1), ("garbage", 8)):
        quota.write_text(text)
        assert choose_num_threads(quota) == expected
    assert choose_num_threads(tmp_path / "absent") == 8


def test_available_memory_is_the_containers_if_less(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16 kB\nMemAvailable: 1000 kB\n")
    assert available_memory(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("600000")
    (tmp_path / "memory.current").write_text("100000")
    assert available_memory(meminfo, tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory(meminfo, tmp_path) == 1_024_000


def test_blocks_are_bounded_by_memory_and_by_use():
    assert choose_num_blocks(bytes_per_block=10, max_useful_blocks=5, memory=1000) == 5
    assert choose_num_blocks(bytes_per_block=10, max_useful_blocks=500, memory=1000) == 100


def test_kv_memory_is_not_taken_before_it_is_used():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    storage = KVStorage(
        num_layers=4,
        num_blocks=4096,
        block_size=16,
        num_kv_heads=8,
        head_dim=64,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    assert storage.num_bytes == 2**29
    assert resident() - before < 2**26


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_keys_and_values_that_cannot_be_allocated(kernels, caplog):
    settings = EngineConfig(device="cpu", kernels=kernels, kv_cache_memory=10**17, max_num_seqs=10**14)
    with pytest.raises(ConfigError, match=r"^kv_cache_memory: [0-9,]+ bytes of keys and values") as caught:
        build_engine(random_checkpoint(LLAMA), settings)
    assert "cannot be allocated: " in str(caught.value)
    assert "bytes are free; lower kv_cache_memory, max_num_seqs or max_model_len" in str(caught.value)
    assert "as they fill" in caplog.text


@pytest.mark.parametrize("error", [MemoryError("x"), RuntimeError("can't allocate memory: you tried")])
def test_weights_that_cannot_be_allocated_name_the_file(error, monkeypatch):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(engine.loading.backend, "Decoder", fail)
    checkpoint = replace(random_checkpoint(LLAMA), path=Path("folder/model.gguf"))
    with pytest.raises(ConfigError, match=r"folder/model\.gguf: the weights cannot be allocated: "):
        build_engine(checkpoint, EngineConfig(device="cpu", kernels="torch"))


def test_other_errors_while_loading_stay_what_they_are(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(engine.loading.backend, "Decoder", fail)
    with pytest.raises(RuntimeError, match="something else"):
        build_engine(random_checkpoint(LLAMA), EngineConfig(device="cpu", kernels="torch"))


def without(checkpoint: Checkpoint, name: str) -> Checkpoint:
    return replace(checkpoint, tensors={k: v for k, v in checkpoint.tensors.items() if k != name})


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_missing_extra_and_misshapen_tensors_are_named(config):
    checkpoint, settings = random_checkpoint(config), EngineConfig(device="cpu", kv_cache_memory=2**22)
    name = "layers.1.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        build_engine(without(checkpoint, name), settings)
    wrong = InMemoryTensor(torch.zeros(3, 4))
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[3, 4\], but .* says \[96, 160\]"):
        build_engine(replace(checkpoint, tensors={**checkpoint.tensors, name: wrong}), settings)
    with pytest.raises(CheckpointError, match=r"tensor layers\.9\.attn\.q_proj\.weight: .* no place for it"):
        build_engine(
            replace(checkpoint, tensors={**checkpoint.tensors, "layers.9.attn.q_proj.weight": wrong}),
            settings,
        )
