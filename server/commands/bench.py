"""`draftline bench`: how fast a model runs on this machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from server.commands.banner import mebibytes
from server.commands.model_check import check_models
from server.settings import parse_settings
from server.terminal.settings import BenchSettings

if TYPE_CHECKING:
    from engine.loading.benchmark import BenchmarkResult

_JSON = "--json"  # no setting: as one its environment variable would be JSON


def bench(arguments: Sequence[str]) -> int:
    """Measure and print a table, or one JSON object."""
    flags = [argument for argument in arguments if argument != _JSON]
    settings = parse_settings(BenchSettings, flags, program="draftline bench")
    check_models(settings)
    with Console(stderr=True).status(Text("loading torch")) as status:
        from engine.checkpoint import load_checkpoint
        from engine.loading.benchmark import run_benchmark
        from engine.loading.machine import cpu_name
        from server.loading import engine_config

        checkpoint = load_checkpoint(settings.model)
        result = run_benchmark(
            checkpoint,
            engine_config(settings),
            rounds=settings.rounds,
            progress=lambda what: status.update(Text(what)),
        )
    machine = cpu_name() if result.info.device == "cpu" else result.info.device
    if _JSON in arguments:
        content = {"model": checkpoint.name, "machine": machine, **asdict(result)}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        sys.stdout.write("\n".join(table(result, model=checkpoint.name, machine=machine)) + "\n")
    return 0


def table(result: "BenchmarkResult", *, model: str, machine: str) -> list[str]:
    """Return the lines for people."""
    info = result.info
    lines = [
        f"{model}: weights {info.dtype}, {mebibytes(info.weight_bytes)}",
        f"{machine}, {info.num_threads} threads, kernels {info.kernels}",
        f"The engine alone, no HTTP, greedy, no speculation; medians of {result.rounds} rounds.",
        "",
    ]
    for count, rate in result.decode_tokens_per_second.items():
        name = "decode, 1 stream" if count == 1 else f"decode, {count} streams together"
        lines.append(_line(name, f"{rate:,.0f}", "tok/s"))
    prompt = f"{result.num_prompt_tokens:,} prompt tokens"
    lines.append(_line(f"prefill, {prompt}", f"{result.prefill_tokens_per_second:,.0f}", "tok/s"))
    lines.append(_line(f"first token, {prompt}, new", f"{result.first_token_new_seconds * 1e3:,.1f}", "ms"))
    cached = f"{result.first_token_cached_seconds * 1e3:,.1f}"
    lines.append(_line(f"first token, {prompt}, cached", cached, "ms"))
    return [*lines, *_memory_lines(result)]


def _memory_lines(result: "BenchmarkResult") -> list[str]:
    if result.read_gb_per_second is None or result.memory_limit_share is None:
        return []
    share = f"{result.memory_limit_share * 100:,.0f}"
    lines = [
        _line("memory reads, all threads, best", f"{result.read_gb_per_second:,.1f}", "GB/s"),
        _line("1 stream's share of the memory limit", share, "%"),
        "",
        "The memory limit: a token that costs one reading of all weights and nothing else.",
    ]
    if result.memory_limit_share > 1:
        lines.append("More than 100 %: caches held some of the weights, or the machine was not idle.")
    return lines


def _line(name: str, value: str, unit: str) -> str:
    return f"  {name:42}{value:>10} {unit}"
