"""The quick benchmark on a tiny pair: every figure is there, and follows from what was measured."""

from pathlib import Path

import pytest

from engine.checkpoint import load_checkpoint
from engine.interface.config import EngineConfig
from engine.loading import benchmark
from engine.loading.offline import random_requests

TARGET = str(Path(__file__).parent.parent / "assets/pair/target")


def test_every_figure_is_there_and_rounds_differ(monkeypatch):
    monkeypatch.setattr(benchmark, "_BANDWIDTH_BYTES", 2**20)
    told = []
    checkpoint = load_checkpoint(TARGET)
    result = benchmark.run_benchmark(
        checkpoint, EngineConfig(device="cpu", kernels="torch"), rounds=2, progress=told.append
    )
    assert told == ["loading the model", "warming up", "round 1 of 2", "round 2 of 2"]
    assert result.rounds == 2
    assert set(result.decode_tokens_per_second) == {1, 8}
    assert min(result.decode_tokens_per_second.values()) > 0
    assert result.num_prompt_tokens == min(1000, result.info.max_model_len - 1)
    assert result.prefill_tokens_per_second == pytest.approx(
        result.num_prompt_tokens / result.first_token_new_seconds
    )
    assert result.info.speculation == "off"
    limit = result.read_gb_per_second * 1e9 / result.info.weight_bytes
    assert result.memory_limit_share == pytest.approx(result.decode_tokens_per_second[1] / limit)


def test_random_requests_differ_by_seed_and_are_equal_by_it():
    def prompts(seed):
        made = random_requests(100, count=2, num_prompt_tokens=20, num_tokens=3, seed=seed)
        assert all(request.params.max_tokens == 3 and request.params.ignore_eos for request in made)
        return [request.prompt_token_ids for request in made]

    assert prompts(1) == prompts(1) != prompts(2)
    assert prompts(1)[0] != prompts(1)[1]
