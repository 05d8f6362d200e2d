"""The engine alone, without HTTP: step times by batch size, prefill, sampling, and Python's share.

    python -m loadtest.offline [--model SPEC] [--dtype bfloat16] [--kernels torch] [--rounds 3]

Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time

import torch

from engine.checkpoint import load_checkpoint
from engine.core.engine import Engine
from engine.interface.config import EngineConfig
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.loading.backend import FusedBackend
from engine.loading.loader import LoadedEngine, build_engine
from engine.loading.offline import GREEDY, random_requests, run_requests
from engine.loading.speculation import measure_step_costs
from engine.speculative.step_costs import StepCosts
from loadtest.environment import environment

MIXED_PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_k=50),
    SamplingParams(temperature=0.9, top_p=0.95),
    SamplingParams(temperature=1.0, min_p=0.05),
)


def requests(
    vocab_size: int, count: int, num_prompt_tokens: int, num_tokens: int, seed: int, *, mixed: bool = False
) -> list[GenerationRequest]:
    """Random prompts; greedy, or a mixture of sampling parameters."""
    return random_requests(
        vocab_size,
        count=count,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        seed=seed,
        params=MIXED_PARAMS if mixed else (GREEDY,),
    )


def kernel_shares(loaded: LoadedEngine, generations: list[GenerationRequest]) -> tuple[float, float]:
    """Shares of a decode step's time outside the kernels (Python and torch), and at their barriers."""
    engine = loaded.engine
    assert isinstance(loaded.backend, FusedBackend)
    context = loaded.backend.context
    start_decoding(engine, generations)
    context.set_timing(True)
    context.take_times()
    started = time.perf_counter()
    for _ in range(20):
        engine.step()
    wall = time.perf_counter() - started
    times = context.take_times()
    context.set_timing(False)
    while engine.has_work:
        engine.step()
    inside = times.step_nanoseconds / 1e9
    return 1.0 - inside / wall, times.barrier_nanoseconds / 1e9 / loaded.info.num_threads / wall


def verification_ratios(engine: Engine) -> dict[str, float]:
    """Price of a pass that verifies several tokens of one request, over that of a single token."""
    costs = StepCosts()
    measure_step_costs(
        engine.executor,
        num_positions=engine.limits.max_model_len - 1,
        block_size=engine.kv_cache_manager.block_size,
        target_costs=costs,
        draft_costs=StepCosts(),
    )
    price = costs.seconds
    return {f"verification_of_{n}_over_one": round(price(n) / price(1), 2) for n in (2, 3, 5, 8)}


def start_decoding(engine: Engine, generations: list[GenerationRequest]) -> None:
    """Take requests in and compute their prompts."""
    for generation in generations:
        engine.add_request(generation)
    while any(r.num_output_tokens == 0 for r in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()


def python_share(engine: Engine, generations: list[GenerationRequest]) -> float:
    """Share of a decode step's time in which no torch operator runs: Python, dispatch and bookkeeping."""
    start_decoding(engine, generations)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        started = time.perf_counter()
        for _ in range(5):
            engine.step()
        wall = time.perf_counter() - started
    while engine.has_work:
        engine.step()
    # Top-level operators only: children are inside their parents' time.
    inside: float = sum(e.cpu_time_total for e in profile.events() if e.cpu_parent is None) / 1e6
    return 1.0 - inside / wall


def measure(loaded: LoadedEngine, rounds: int) -> dict[str, object]:
    """Medians over rounds, the cases interleaved."""
    engine = loaded.engine
    vocab_size, results = engine.limits.vocab_size, dict[str, list[float]]()
    for number in range(rounds):
        for batch in (1, 4, 16, 32):
            decodes = run_requests(
                engine, requests(vocab_size, batch, 128, 64, 1000 * number + batch)
            ).decodes
            results.setdefault(f"decode_ms_batch_{batch}", []).append(1e3 * statistics.median(decodes))
        decodes = run_requests(engine, requests(vocab_size, 16, 128, 64, number, mixed=True)).decodes
        results.setdefault("decode_ms_batch_16_mixed_sampling", []).append(1e3 * statistics.median(decodes))
        prefills = run_requests(engine, requests(vocab_size, 1, 1000, 1, 77 + number)).prefills
        results.setdefault("prefill_1000_ms", []).append(1e3 * sum(prefills))
    ratios = [verification_ratios(engine) for _ in range(rounds)]
    results |= {name: [ratio[name] for ratio in ratios] for name in ratios[0]}
    medians: dict[str, object] = {name: round(statistics.median(times), 2) for name, times in results.items()}
    for batch in (1, 16, 32):
        generations = requests(vocab_size, batch, 128, 32, 5)
        if isinstance(loaded.backend, FusedBackend):
            share, waiting = kernel_shares(loaded, generations)
            medians[f"barrier_share_batch_{batch}"] = round(waiting, 3)
        else:
            share = python_share(engine, generations)
        medians[f"python_share_batch_{batch}"] = round(share, 3)
    return medians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loaded = build_engine(
        load_checkpoint(arguments.model),
        EngineConfig(
            dtype=arguments.dtype, kernels=arguments.kernels, kv_cache_dtype=arguments.kv_cache_dtype
        ),
    )
    results = measure(loaded, arguments.rounds)
    for name, value in results.items():
        print(f"{name:36} {value}")
    header = {
        "benchmark": "offline",
        "model": arguments.model,
        "dtype": loaded.info.dtype,
        "kernels": loaded.info.kernels,
    }
    print(json.dumps(header | environment() | results))


if __name__ == "__main__":
    main()
