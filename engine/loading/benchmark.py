"""run_benchmark: a few figures that say how fast a model runs on this machine, and what bounds it."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from engine.checkpoint.checkpoint import Checkpoint
from engine.core.engine import Engine
from engine.interface.config import EngineConfig
from engine.interface.errors import ConfigError
from engine.interface.info import EngineInfo
from engine.loading.bandwidth import decode_limit, measure_bandwidth
from engine.loading.kv_memory import available_memory
from engine.loading.loader import build_engine
from engine.loading.machine import choose_device, choose_num_threads
from engine.loading.offline import StepTimes, random_requests, run_requests

STREAMS = (1, 8)
_PROMPT_TOKENS, _ANSWER_TOKENS = 128, 64  # of each stream
_LONG_PROMPT_TOKENS = 1000
_MIN_MODEL_LEN = 2 * _PROMPT_TOKENS
_BANDWIDTH_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Medians over rounds, of the engine alone: no HTTP, greedy, no speculation, random tokens."""

    info: EngineInfo
    rounds: int
    decode_tokens_per_second: Mapping[int, float]  # of all streams together, by their number
    num_prompt_tokens: int  # of the prompt that the next three are about
    prefill_tokens_per_second: float
    first_token_new_seconds: float  # nothing of the prompt is cached
    first_token_cached_seconds: float  # all but its last token is
    read_gb_per_second: float | None  # memory reads of all threads, the best of the run; None on a GPU
    memory_limit_share: float | None  # weight_bytes * tokens per second of one stream / memory reads


def run_benchmark(
    checkpoint: Checkpoint, config: EngineConfig, *, rounds: int, progress: Callable[[str], None]
) -> BenchmarkResult:
    """Load a model and measure it; `progress` is told what is being done.

    Raises ConfigError and CheckpointError as build_engine does, and for a context that is too short.
    """
    progress("loading the model")
    loaded = build_engine(checkpoint, replace(config, max_num_seqs=max(STREAMS), speculation="off"))
    if loaded.info.max_model_len < _MIN_MODEL_LEN:
        raise ConfigError(f"a context of {_MIN_MODEL_LEN} tokens is needed, got {loaded.info.max_model_len}")
    figures = defaultdict[str, list[float]](list)
    is_on_cpu = choose_device(config.device).type == "cpu"
    for number in range(-1, rounds):
        progress("warming up" if number < 0 else f"round {number + 1} of {rounds}")
        found = _run_round(loaded.engine, loaded.info.max_model_len, number)
        if is_on_cpu:  # in every round: the other figures are of the same moments
            found["read_gb_per_second"] = _read_memory()
        for name, value in found.items() if number >= 0 else ():
            figures[name].append(value)
    return _summarise(loaded.info, rounds, figures)


def _read_memory() -> float:
    """Return the GB/s at which all threads together read, though the engine leaves torch with one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(choose_num_threads())
    try:
        return measure_bandwidth(min(_BANDWIDTH_BYTES, available_memory() // 4), repeats=5)["best"]
    finally:
        torch.set_num_threads(num_threads)


def _run_round(engine: Engine, max_model_len: int, number: int) -> dict[str, float]:
    """Return each figure of one round, whose prompts no other round has."""
    figures = {}
    for count in STREAMS:
        times = _run(engine, count, _PROMPT_TOKENS, _ANSWER_TOKENS, seed=1000 + 10 * number + count)
        figures[f"decode_{count}"] = count / statistics.median(times.decodes)
    num_tokens = _long_prompt_tokens(max_model_len)
    seed = 2000 + number
    figures["first_new"] = sum(_run(engine, 1, num_tokens, 1, seed=seed).prefills)
    figures["first_cached"] = sum(_run(engine, 1, num_tokens, 1, seed=seed).prefills)
    return figures


def _run(engine: Engine, count: int, num_prompt_tokens: int, num_tokens: int, *, seed: int) -> StepTimes:
    generations = random_requests(
        engine.limits.vocab_size,
        count=count,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        seed=seed,
    )
    return run_requests(engine, generations)


def _long_prompt_tokens(max_model_len: int) -> int:
    return min(_LONG_PROMPT_TOKENS, max_model_len - 1)


def _summarise(info: EngineInfo, rounds: int, figures: Mapping[str, list[float]]) -> BenchmarkResult:
    medians = {name: statistics.median(values) for name, values in figures.items()}
    num_prompt_tokens = _long_prompt_tokens(info.max_model_len)
    bandwidth = max(figures["read_gb_per_second"]) if "read_gb_per_second" in figures else None
    limit = None if bandwidth is None else decode_limit(info.weight_bytes, bandwidth)
    return BenchmarkResult(
        info=info,
        rounds=rounds,
        decode_tokens_per_second={count: medians[f"decode_{count}"] for count in STREAMS},
        num_prompt_tokens=num_prompt_tokens,
        prefill_tokens_per_second=num_prompt_tokens / medians["first_new"],
        first_token_new_seconds=medians["first_new"],
        first_token_cached_seconds=medians["first_cached"],
        read_gb_per_second=bandwidth,
        memory_limit_share=medians["decode_1"] / limit if limit else None,
    )
