"""How much of a GPU keys and values get: arithmetic alone, without a card."""

import logging

import pytest
import torch

import engine.loading.loader
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.loading.kv_memory import (
    CONTEXT_BYTES,
    DEFAULT_GPU_MEMORY_UTILIZATION,
    GPUMemory,
    check_kv_cache_fits,
    kv_cache_bytes_on_gpu,
    measure_gpu_memory,
)
from server.settings import ServeSettings
from tests.tiny import LLAMA, random_checkpoint, tiny_engine

GIB = 2**30


def bytes_on_gpu(**changes: int | float | None) -> int:
    card = {"total": 80 * GIB, "free": 60 * GIB, "used_by_this_process": 20 * GIB, "utilization": 0.9}
    return kv_cache_bytes_on_gpu(**(card | {"margin": GIB} | changes))


def test_alone_on_a_card_the_share_less_what_we_hold():
    assert bytes_on_gpu() == 52 * GIB
    assert bytes_on_gpu(utilization=0.5) == 20 * GIB
    assert bytes_on_gpu(utilization=None) == bytes_on_gpu(utilization=DEFAULT_GPU_MEMORY_UTILIZATION)


def test_the_margin_stays_free_even_where_the_share_is_all():
    assert bytes_on_gpu(utilization=1.0) == 59 * GIB


def test_beside_another_process_only_what_is_free():
    assert bytes_on_gpu(free=30 * GIB) == 29 * GIB, "the other one holds 30"
    assert bytes_on_gpu(free=30 * GIB, utilization=0.5) == 20 * GIB, "the share is still of the whole card"


def test_too_small_a_share_says_what_is_missing_and_that_it_may_be_raised():
    with pytest.raises(ConfigError) as caught:
        bytes_on_gpu(utilization=0.25, needed=GIB)
    message = str(caught.value)
    assert f"{GIB:,} more than there are" in message
    assert f"gpu_memory_utilization 0.25 gives this server {20 * GIB:,}" in message
    assert "; raise gpu_memory_utilization, lower max_model_len, max_num_seqs or" in message


def test_too_full_a_card_says_that_others_are_there():
    with pytest.raises(ConfigError, match="; end what else uses the card, lower max_model_len") as caught:
        bytes_on_gpu(free=GIB // 2, needed=GIB)
    assert f"need at least {GIB:,} bytes on the GPU, {3 * GIB // 2:,} more than there are" in str(
        caught.value
    )
    assert f"{GIB // 2:,} are free" in str(caught.value)


def test_exactly_what_is_needed_is_enough():
    assert bytes_on_gpu(needed=52 * GIB) == 52 * GIB
    with pytest.raises(ConfigError, match=r"at least [0-9,]+ bytes on the GPU, 1 more than there are"):
        bytes_on_gpu(needed=52 * GIB + 1)


def test_an_explicit_size_is_refused_with_the_one_that_fits():
    check_kv_cache_fits(9 * GIB, free=10 * GIB, margin=GIB)
    with pytest.raises(ConfigError, match=f"^kv_cache_memory: {9 * GIB + 1:,} bytes .* do not fit") as caught:
        check_kv_cache_fits(9 * GIB + 1, free=10 * GIB, margin=GIB)
    assert f"{9 * GIB:,} can be used: set it to that at most" in str(caught.value)
    with pytest.raises(ConfigError, match=r", and 0 can be used"):
        check_kv_cache_fits(1, free=GIB // 2, margin=GIB)


@pytest.mark.parametrize("others", [0, 5 * GIB])
def test_what_we_hold_is_told_apart_from_what_was_there_before(others):
    at_start = GPUMemory(total=80 * GIB, free=80 * GIB - others - CONTEXT_BYTES, reserved=0)
    graphs = GIB // 4  # taken from the driver, not from torch
    held = CONTEXT_BYTES + 20 * GIB + graphs
    now = GPUMemory(total=80 * GIB, free=80 * GIB - others - held, reserved=20 * GIB)
    assert now.used_by_this_process(at_start) == held


def test_another_process_that_leaves_meanwhile_gives_us_nothing_twice():
    at_start = GPUMemory(total=80 * GIB, free=40 * GIB, reserved=0)
    now = GPUMemory(total=80 * GIB, free=60 * GIB, reserved=20 * GIB)
    assert now.used_by_this_process(at_start) == 20 * GIB, "never less than torch itself holds"


def test_measuring_asks_torch(monkeypatch):
    calls = list[str]()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: calls.append("measure") or (3, 9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4)
    assert measure_gpu_memory(torch.device("cuda")) == GPUMemory(total=9, free=3, reserved=4)
    assert calls == ["synchronize", "empty_cache", "measure"]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, *, free: int, total: int = 10 * GIB) -> None:
    """Have the loader see a card, over an engine that runs on the CPU."""
    memory = GPUMemory(total=total, free=free, reserved=0)
    monkeypatch.setattr(engine.loading.loader, "measure_gpu_memory", lambda _: memory)
    monkeypatch.setattr(engine.loading.loader, "_look_at_device", lambda *_: memory)


def build(**settings: object) -> int:
    config = EngineConfig(device="cpu", kernels="torch", dtype="float32", **settings)
    return engine.loading.loader.build_engine(random_checkpoint(LLAMA), config).info.num_kv_blocks


BYTES_PER_BLOCK = 16 * 2 * 2 * 2 * 16 * 4


def test_the_loader_takes_its_share_of_a_card(monkeypatch):
    total = 10 * GIB
    pretend_gpu(monkeypatch, free=total, total=total)
    assert build(gpu_memory_utilization=100 * BYTES_PER_BLOCK / total, max_num_seqs=64) == 100
    assert build(max_num_seqs=2) == 2 * 512 // 16, "no more than could be used"
    with pytest.raises(ConfigError, match="raise gpu_memory_utilization"):
        build(gpu_memory_utilization=31 * BYTES_PER_BLOCK / total, max_model_len=512)


def test_an_explicit_size_wins_on_a_card_but_must_fit(monkeypatch):
    pretend_gpu(monkeypatch, free=256 * 2**20 + 10 * BYTES_PER_BLOCK)
    assert build(kv_cache_memory=10 * BYTES_PER_BLOCK, gpu_memory_utilization=1e-9) == 10
    with pytest.raises(ConfigError, match=f"{10 * BYTES_PER_BLOCK:,} can be used"):
        build(kv_cache_memory=11 * BYTES_PER_BLOCK)


@pytest.mark.parametrize(("value", "is_warned"), [(0.9, True), (None, False)])
def test_a_cpu_warns_of_a_share_that_it_has_no_use_for(value, is_warned, caplog):
    with caplog.at_level(logging.WARNING):
        tiny_engine(gpu_memory_utilization=value)
    assert ("gpu_memory_utilization 0.9 has no effect: the device is cpu" in caplog.text) is is_warned


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match="gpu_memory_utilization must be above 0 and at most 1, got"):
        EngineConfig(gpu_memory_utilization=value)


def test_the_flags_help_names_the_default():
    description = ServeSettings.model_fields["gpu_memory_utilization"].description
    assert description is not None
    assert f"{DEFAULT_GPU_MEMORY_UTILIZATION} if not given" in description
