"""Perplexity of a model over a fixed text, by the definition of llama.cpp's llama-perplexity.

    python -m loadtest.perplexity                                   # the engine in this process
    python -m loadtest.perplexity --dtype float32                   # the reference: weights dequantised
    python -m loadtest.perplexity --base-url http://127.0.0.1:8000  # a running draftline, through `echo`
    python -m loadtest.perplexity --llama-perplexity PATH --llama-model PATH.gguf

What makes the figures comparable: the same file is tokenised whole, without special tokens in the text; the
ids are cut into windows of --context tokens that do not overlap, and the rest is dropped; each window is
scored alone, with the beginning-of-sequence token in its first place if the vocabulary asks for one; only the
tokens after the first half of a window count, so each has at least half a window before it. Perplexity is
exp of the mean negative log-likelihood. The text is --text FILE; without it the manual topics in Python's
standard library, whose hash is in the JSON line, for they differ from one Python to the next.
"""

import argparse
import hashlib
import json
import math
import os
import pydoc_data.topics
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import DEFAULT_MODEL, load_checkpoint
from engine.core.engine import Engine
from engine.interface.config import EngineConfig
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.loading.loader import build_engine
from loadtest.environment import environment
from server.text import Tokenizer

Scorer = Callable[[Sequence[int]], Sequence[float]]  # token ids -> logprob of each from the second on


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """A perplexity, its standard error, and over how many tokens."""

    value: float
    error: float
    num_tokens: int


def default_text(num_chars: int) -> str:
    """Return the beginning of the standard library's manual topics: English prose and some code."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))[:num_chars]


def windows(token_ids: Sequence[int], context: int, *, bos: int | None = None) -> list[list[int]]:
    """Cut ids into windows of `context` tokens; `bos`, if given, takes the first place of each."""
    starts = range(0, len(token_ids) - context + 1, context)
    cut = [list(token_ids[start : start + context]) for start in starts]
    return [window if bos is None else [bos, *window[1:]] for window in cut]


def perplexity(score: Scorer, cut: Sequence[Sequence[int]]) -> Perplexity:
    """Score each window alone; count the tokens whose predecessor is in the second half."""
    losses = [-logprob for window in cut for logprob in score(window)[len(window) // 2 :]]
    if len(losses) < 2:
        raise SystemExit("the text is shorter than one window: give a longer --text or a smaller --context")
    mean = math.fsum(losses) / len(losses)
    variance = max(0.0, math.fsum(loss * loss for loss in losses) / len(losses) - mean * mean)
    value = math.exp(mean)
    return Perplexity(
        value=value, error=value * math.sqrt(variance / (len(losses) - 1)), num_tokens=len(losses)
    )


def engine_scorer(engine: Engine) -> Scorer:
    """Score in this process."""

    def score(token_ids: Sequence[int]) -> list[float]:
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        request = engine.add_request(GenerationRequest(prompt_token_ids=tuple(token_ids), params=params))
        while engine.has_work:
            engine.step()
        return [entry.logprob for entry in request.prompt_logprobs]

    return score


def http_scorer(base_url: str, model: str) -> Scorer:
    """Score through a running server: `echo` with no token to generate."""

    def score(token_ids: Sequence[int]) -> list[float]:
        body = {"model": model, "prompt": list(token_ids), "echo": True, "max_tokens": 0, "logprobs": 0}
        answer = _post(f"{base_url}/v1/completions", body)
        logprobs: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
        return logprobs

    return score


def llama_perplexity(program: str, model: str, text: Path, context: int) -> dict[str, float]:
    """Run llama-perplexity over the same file; raises RuntimeError if it fails."""
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    command = (program, "-m", model, "-f", str(text), "-c", str(context), "-t", threads)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    final = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", output)
    chunks = re.search(r"over (\d+) chunks", output)
    if final is None:
        raise RuntimeError(
            f"llama-perplexity gave no estimate (exit code {result.returncode}): {output[-1000:]}"
        )
    figures = {"perplexity": float(final[1]), "error": float(final[2])}
    return figures | ({"windows": int(chunks[1])} if chunks else {})


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def measure(arguments: argparse.Namespace, text: str) -> dict[str, object]:
    """Tokenise, cut and score with draftline."""
    checkpoint = load_checkpoint(arguments.model)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    token_ids = tokenizer.encode(text, allow_special=False)
    adds_bos = token_ids[:1] == [checkpoint.tokenizer.bos_token_id]
    cut = windows(token_ids, arguments.context, bos=checkpoint.tokenizer.bos_token_id if adds_bos else None)
    if arguments.base_url:
        found = perplexity(http_scorer(arguments.base_url, checkpoint.name), cut)
        how = {"through": "http"}
    else:
        config = EngineConfig(
            dtype=arguments.dtype, kv_cache_dtype=arguments.kv_cache_dtype, enable_prefix_caching=False
        )
        loaded = build_engine(checkpoint, config)
        found = perplexity(engine_scorer(loaded.engine), cut)
        how = {"through": "engine", "dtype": loaded.info.dtype, "kv_cache_dtype": loaded.info.kv_cache_dtype}
    figures: dict[str, object] = {
        "perplexity": round(found.value, 4),
        "error": round(found.error, 4),
        "tokens": found.num_tokens,
    }
    return how | figures | {"windows": len(cut), "text_tokens": len(token_ids)}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="also names the tokenizer for --base-url")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--base-url", default="", help="score through a running draftline, without /v1")
    parser.add_argument("--text", type=Path, help="UTF-8 file (default: Python's manual topics)")
    parser.add_argument("--text-chars", type=int, default=65_536, help="how much of it")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--llama-perplexity", default=os.environ.get("COMPARE_LLAMA_PERPLEXITY", ""))
    parser.add_argument("--llama-model", default="", help="GGUF file for llama-perplexity")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parse(argv)
    text = arguments.text.read_text("utf-8") if arguments.text else default_text(arguments.text_chars)
    text = text[: arguments.text_chars]
    result: dict[str, object] = {"text_sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
    result["draftline"] = measure(arguments, text)
    if arguments.llama_perplexity and arguments.llama_model:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            path.write_text(text, "utf-8")
            result["llama.cpp"] = llama_perplexity(
                arguments.llama_perplexity, arguments.llama_model, path, arguments.context
            )
    for name, value in result.items():
        print(f"{name:12} {value}")
    header = {"benchmark": "perplexity", "model": arguments.model, "context": arguments.context}
    print(json.dumps(header | environment() | result))


if __name__ == "__main__":
    main()
