"""Same tokens: the same requests in every way that must not matter, answers compared to the bit.

    python -m tests.gpu.tokens --only llama|gpt2|qwen3|qwen2|float32|float16 [--rehearse]

Each request's answer, alone in a fresh engine without a prefix cache, is what every other way must give.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.model_config import ModelConfig
from engine.core.engine import Engine
from engine.interface.outputs import GenerationRequest
from tests.gpu.checkpoints import draft_of, random_checkpoint
from tests.gpu.report import Report
from tests.gpu.requests import Answer, differing, first_difference, requests, run, speculating
from tests.gpu.setting import Setting, has_settings, run_part
from tests.gpu.shapes import SMALL, shrunk
from tests.gpu.ways import Way, all_ways, short_ways

_CASES = {
    "llama": ("llama", "bfloat16"),
    "gpt2": ("gpt2", "bfloat16"),
    "qwen3": ("qwen3", "bfloat16"),
    "qwen2": ("qwen2", "bfloat16"),
    "float32": ("llama", "float32"),
    "float16": ("llama", "float16"),
}
_MEMORY = 2**30
_DRAFT_NOISE = 0.02


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model, its requests, and what each of them answers alone."""

    checkpoint: Checkpoint
    dtype: str
    requests: Sequence[GenerationRequest]
    expected: Sequence[Answer]


def tokens(setting: Setting, report: Report) -> None:
    """Run one model in all its ways."""
    for name in [setting.only] if setting.only else list(_CASES):
        model, dtype = _CASES[name]
        if setting.rehearse and dtype == "float16":
            dtype = "bfloat16"  # float16 on a CPU is another matter
        with report.section(name):
            bench = _prepare(setting, report, SMALL[model], dtype)
            is_whole = name == "llama" or (name == "gpt2" and not setting.rehearse)
            ways = all_ways(setting) if is_whole else short_ways(setting)
            _compare_all(setting, report, bench, ways[:2] if setting.rehearse and not is_whole else ways)


def _prepare(setting: Setting, report: Report, config: ModelConfig, dtype: str) -> Bench:
    config = shrunk(config) if setting.rehearse else config
    checkpoint = random_checkpoint(config, device=setting.device)
    count, max_tokens = setting.number(14, 28, 42), setting.number(9, 24, 24)
    made = requests(count, vocab_size=config.vocab_size, max_tokens=max_tokens)
    settings = {"dtype": dtype, "kv_cache_memory": _memory(setting), "max_num_seqs": 1}
    engine_config = setting.engine_config(**settings, enable_prefix_caching=False)
    engine = setting.build_engine(checkpoint, engine_config).engine
    expected = run(engine, made)
    engine.close()
    different = len({answer.token_ids for answer in expected})
    report.check("answers vary", different > count // 2, f"{different} of {count}")
    return Bench(checkpoint=checkpoint, dtype=dtype, requests=made, expected=expected)


def _memory(setting: Setting) -> int:
    return setting.number(2**23, _MEMORY, _MEMORY)


def _compare_all(setting: Setting, report: Report, bench: Bench, ways: Sequence[Way]) -> None:
    num_answers = num_wrong = 0
    for way in ways:
        if not has_settings(dict(way.settings)):
            report.waiting(way.name, f"EngineConfig has no {', '.join(way.settings)}")
        elif setting.is_late:
            report.late(way.name)
        else:
            with report.section(way.name):
                answers, wrong = _compare(setting, report, bench, way)
                num_answers, num_wrong = num_answers + answers, num_wrong + wrong
    report.figure("answers compared", num_answers, "answers", detail=f"{num_wrong} differ")


def _compare(setting: Setting, report: Report, bench: Bench, way: Way) -> tuple[int, int]:
    """Run the requests in one way; returns how many answers were compared, and how many differ."""
    engine = _build(setting, bench, way)
    num_wrong = 0
    made = [_asked(request, way, number) for number, request in enumerate(bench.requests)]
    for label in way.runs:
        answers = run(engine, _among_others(made, way, bench))[: len(made)]
        wrong = differing(answers, bench.expected)
        num_wrong += len(wrong)
        report.check(f"{way.name}, {label}", not wrong, _explain(wrong, answers, bench))
    _check_it_happened(report, engine, way)
    engine.close()
    return len(made) * len(way.runs), num_wrong


def _build(setting: Setting, bench: Bench, way: Way) -> Engine:
    settings = {"dtype": bench.dtype, "kv_cache_memory": _memory(setting), **way.settings}
    if way.is_tight:
        longest = max(len(one.prompt_token_ids) + one.params.max_tokens for one in bench.requests)
        settings["max_model_len"] = longest
        settings["kv_cache_memory"] = (1 + -(-longest // 16)) * _block_bytes(bench)
    draft = draft_of(bench.checkpoint, _DRAFT_NOISE) if way.has_draft else None
    return setting.build_engine(bench.checkpoint, setting.engine_config(**settings), draft).engine


def _block_bytes(bench: Bench) -> int:
    config, itemsize = bench.checkpoint.config, 4 if bench.dtype == "float32" else 2
    return 2 * 16 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize


def _asked(request: GenerationRequest, way: Way, number: int) -> GenerationRequest:
    """Return a request with the way's speculation; of fixed lengths every one from 1 on has its turn."""
    if way.mode is None:
        return request
    return speculating(request, way.mode, None if way.k is None else 1 + number % way.k)


def _among_others(made: Sequence[GenerationRequest], way: Way, bench: Bench) -> list[GenerationRequest]:
    """Return the requests, and behind them others that differ."""
    vocab_size = bench.checkpoint.config.vocab_size
    longest = max(request.params.max_tokens for request in made)
    return [*made, *requests(way.num_others, vocab_size=vocab_size, max_tokens=longest, seed=77)]


def _explain(wrong: Sequence[int], answers: Sequence[Answer], bench: Bench) -> str:
    if not wrong:
        return ""
    first = wrong[0]
    where = first_difference(answers[first], bench.expected[first])
    return f"{len(wrong)} of {len(answers)} differ: request {first}: {where}; {bench.requests[first].params}"[
        :400
    ]


def _check_it_happened(report: Report, engine: Engine, way: Way) -> None:
    """A way that was not gone proves nothing."""
    stats = engine.stats()
    if way.is_tight:
        report.check("requests were preempted", stats.num_preemptions > 0)
    if way.mode in ("draft", "ngram"):
        detail = f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted"
        report.check(f"{way.name} drafted", stats.num_draft_tokens > 0, detail)
    if "warm" in way.runs and way.mode != "off":
        report.check(f"{way.name} hit the cache", stats.prefix_cache_hits > 0)


if __name__ == "__main__":
    random.seed(0)
    sys.exit(run_part("tokens", tokens))
