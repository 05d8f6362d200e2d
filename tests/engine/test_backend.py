"""Which code runs a model: the kernels where they can, torch where they cannot, never in silence."""

import logging
from dataclasses import replace

import pytest

import engine.loading.backend
from engine.interface.errors import ConfigError
from engine.kernels.cpu.library import load_library
from engine.loading.backend import FusedBackend, TorchBackend
from tests.tiny import LLAMA, generate, generation, tiny_engine

NEEDS_KERNELS = pytest.mark.skipif(load_library() is None, reason="there was no C++ compiler")


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(engine.loading.backend, "load_library", lambda: None)


@NEEDS_KERNELS
def test_kernels_are_the_default_on_a_cpu():
    loaded = tiny_engine()
    assert isinstance(loaded.backend, FusedBackend)
    assert loaded.info.kernels in ("avx512_bf16", "avx512", "avx2", "portable")


def test_without_a_compiler_torch_serves_and_says_so(no_library, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = tiny_engine()
    assert isinstance(loaded.backend, TorchBackend)
    assert loaded.info.kernels == "torch"
    assert "they were not built; install a C++ compiler" in caplog.text
    assert len(generate(loaded.engine, generation(range(20)))[0]) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": "fused"}, "kernels 'fused' cannot run this model here: they were not built"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype 'int8' needs the CPU kernels"),
        ({"quantization": "q8_0"}, "quantization 'q8_0' needs the CPU kernels"),
    ],
)
def test_what_only_the_kernels_do_is_refused_without_them(no_library, settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_engine(**settings)


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("config", "settings", "reason"),
    [
        (LLAMA, {"block_size": 8}, "block_size must be a multiple of 16, got 8"),
        (LLAMA, {"dtype": "float16"}, "they have no float16; use bfloat16"),
        (replace(LLAMA, head_dim=300), {}, "heads of 300 dimensions are longer than 256"),
    ],
)
def test_a_model_or_setting_without_kernels_runs_in_torch(config, settings, reason, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = tiny_engine(config, **settings)
    assert loaded.info.kernels == "torch"
    assert reason in caplog.text


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match="kernels must be one of auto, fused, torch, got 'fast'"):
        tiny_engine(kernels="fast")
