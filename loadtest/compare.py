"""draftline side by side with the rivals that are installed, through HTTP on both sides.

    python -m loadtest.compare --llama-server PATH --llama-model PATH.gguf --vllm PATH --vllm-model DIR

All servers are started and loaded first; then one at a time works while all processes of the others are
stopped (SIGSTOP), so that none costs another time or memory bandwidth. Each round gives each case to each
server in turn, in an order that moves on from round to round; the figures are medians over rounds. Prompts
are the same bytes for every server and new in every round. Rivals not named are left out with a note.

Writes DIR/DATE-compare.json and DIR/DATE-compare.md (--output DIR), prints the table, then one JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.loading.bandwidth import decode_limit, measure_bandwidth
from loadtest import compare_report, rivals
from loadtest.compare_cases import CASES, Scale
from loadtest.environment import environment
from loadtest.server_process import ServerProcess, ServerSpec, end_servers_on_signals

Results = defaultdict[str, defaultdict[str, list[float]]]  # server -> measure -> one figure a round


def turns(names: Sequence[str], number: int) -> list[str]:
    """Return the order of servers in a round: everybody is first, second, ... equally often."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


@contextmanager
def only(server: ServerProcess) -> Iterator[None]:
    """Let one server run while the block does."""
    server.resume()
    try:
        yield
    finally:
        server.pause()


def run_round(servers: dict[str, ServerProcess], cases: Sequence[str], number: int, scale: Scale) -> Results:
    """Give every case to every server once."""
    results: Results = defaultdict(lambda: defaultdict(list))
    for case in cases:
        for name in turns(list(servers), number):
            with only(servers[name]):
                for key, value in CASES[case](servers[name].spec, number, scale).items():
                    results[name][key].append(value)
    return results


def measure(servers: dict[str, ServerProcess], arguments: argparse.Namespace) -> Results:
    """Run a round to warm up, then all that count."""
    scale = Scale(
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
        long_prompt_tokens=arguments.long_prompt_tokens,
    )
    results: Results = defaultdict(lambda: defaultdict(list))
    for number in range(-1, arguments.rounds):
        found = run_round(servers, arguments.cases, number, scale)
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr, flush=True)
        for name, figures in found.items() if number >= 0 else ():
            for key, values in figures.items():
                results[name][key].extend(values)
    return results


def start_all(specs: Sequence[ServerSpec], stack: ExitStack) -> dict[str, ServerProcess]:
    """Start the servers one after the other and stop each as soon as it is loaded."""
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
    servers = {}
    for number, spec in enumerate(specs):
        print(f"starting {spec.name} on port {spec.port}", file=sys.stderr, flush=True)
        servers[spec.name] = stack.enter_context(ServerProcess(spec, logs / f"{number}.log"))
        servers[spec.name].pause()
    return servers


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure everything and return what the JSON line says."""
    specs, notes = rivals.server_specs(arguments)
    bandwidth = measure_bandwidth()
    with ExitStack() as stack:
        servers = start_all(specs, stack)
        results = measure(servers, arguments)
        for name, server in servers.items():
            results[name]["start_s"].append(server.start_seconds)
            results[name]["memory_mb"].append(server.memory_mb())
            limit = decode_limit(server.spec.weight_bytes, bandwidth["best"])
            if limit and "single_tok_s" in results[name]:
                share = 100 * statistics.median(results[name]["single_tok_s"]) / limit
                results[name]["share_of_bandwidth"].append(share)
    medians = {
        name: {key: round(statistics.median(values), 2) for key, values in figures.items()}
        for name, figures in results.items()
    }
    shown = ("rounds", "cases", "model", "prompt_tokens", "max_tokens", "long_prompt_tokens")
    return {
        "benchmark": "compare",
        **environment(),
        "arguments": {name: getattr(arguments, name) for name in shown},
        "bandwidth_gb_s": bandwidth,
        "notes": notes,
        "weight_mb": {spec.name: round(spec.weight_bytes / 1e6, 1) for spec in specs},
        "flags": {spec.name: _flags(spec) for spec in specs},
        "medians": medians,
        "ratios": compare_report.ratios(medians, specs[0].name),
        "all": {n: {k: [round(v, 2) for v in vs] for k, vs in f.items()} for n, f in results.items()},
    }


def _flags(spec: ServerSpec) -> str:
    """Return the command without the paths of this machine."""
    return " ".join(Path(word).name if "/" in word else word for word in spec.command)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    rivals.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--prompt-tokens", type=int, default=Scale.prompt_tokens)
    parser.add_argument("--max-tokens", type=int, default=Scale.max_tokens)
    parser.add_argument("--long-prompt-tokens", type=int, default=Scale.long_prompt_tokens)
    parser.add_argument(
        "--output", type=Path, help="folder for the JSON line and the table; none: only print"
    )
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.max_tokens < 3:
        parser.error("--rounds must be at least 1 and --max-tokens at least 3")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print and write."""
    arguments = parse(argv)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)  # found out before the work, not after
    result = compare(arguments)
    table = compare_report.markdown(result)
    if arguments.output:
        stem = arguments.output / f"{str(result['date'])[:10]}-compare"
        stem.with_suffix(".json").write_text(json.dumps(result) + "\n")
        stem.with_suffix(".md").write_text(table)
    print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    end_servers_on_signals()
    main()
