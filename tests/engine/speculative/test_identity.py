"""Speculation never changes an answer: the same tokens, logprobs and endings, bit for bit.

DRAFTLINE_TEST_PAIR_REQUESTS says how many requests the trained pair answers; 50 by default.
"""

import functools
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint import load_checkpoint
from engine.interface.config import EngineConfig
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.speculation import SpeculationMode
from engine.loading.loader import build_engine
from tests.drafters import asking, byte_checkpoint, byte_engine, known, noisy_copy, scripted_speculator
from tests.tiny import GPT2, LLAMA, generation

MODELS = {
    "llama-float32": (LLAMA, "float32"),
    "llama-bfloat16": (LLAMA, "bfloat16"),
    "gpt2-float32": (GPT2, "float32"),
    "gpt2-bfloat16": (GPT2, "bfloat16"),
}
PAIR = Path(__file__).parents[2] / "assets/pair"
SCRIPTED = ["right", "wrong", "alternating", "random"]
SCHEMA = json.dumps(
    {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n"]}
)
KINDS = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"temperature": 0.7, "min_p": 0.05, "logit_bias": {7: 3.0, 9: -100.0}, "logprobs": 2},
    {"temperature": 1.0, "stop_token_ids": frozenset(range(0, 256, 16)), "logprobs": 0},
    {"temperature": 0.0, "stop_token_ids": frozenset(range(0, 256, 8)), "min_tokens": 5},
    {"temperature": 1.2, "top_k": 20, "typical_p": 0.8, "logprobs": 3, "processed_logprobs": True},
    {"temperature": 0.7, "banned_sequences": frozenset({(3,), (5, 6)}), "ignore_eos": True},
    {"temperature": 1.0, "grammar": GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=SCHEMA)},
    {"temperature": 0.0, "grammar": GrammarSpec(kind=GrammarKind.CHOICE, source='["abcabc", "abcd"]')},
    {"temperature": 1.5, "allowed_token_ids": frozenset(range(40)), "prompt_logprobs": 1},
]


def requests(count=18, *, max_tokens=20, vocab_size=256, with_grammar=True, seed=5):
    """Random prompts, some sharing a prefix and some repeating themselves; three choices of the last."""
    rng = random.Random(seed)
    shared = [rng.randrange(vocab_size) for _ in range(40)]
    kinds = [kind for kind in KINDS if with_grammar or "grammar" not in kind]
    made = []
    for i in range(count - 2):
        prompt = (shared if i % 3 == 0 else []) + [
            rng.randrange(vocab_size) for _ in range(rng.choice([1, 9, 33]))
        ]
        prompt = prompt * 2 if i % 4 == 1 else prompt
        made.append(generation(prompt, seed=i, max_tokens=max_tokens, **kinds[i % len(kinds)]))
    return made + [replace(made[-1], choice=choice) for choice in (1, 2)]


def run(engine, generations):
    """Return each request's tokens, ending, logprobs and prompt logprobs."""
    added = [engine.add_request(request) for request in generations]
    scores = {request.request_id: [] for request in added}
    while engine.has_work:
        for output in engine.step():
            scores[output.request.request_id] += output.logprobs
            assert not output.logprobs or len(output.logprobs) == len(output.token_ids)
        engine.check_invariants()
    assert engine.kv_cache_manager.pool.num_free == engine.kv_cache_manager.pool.num_blocks
    assert not engine.speculator._states, "nothing is kept of requests that ended"
    return [
        (r.token_ids[r.num_prompt_tokens :], r.finish_reason, scores[r.request_id], r.prompt_logprobs)
        for r in added
    ]


@functools.cache
def plain(model, count=18):
    config, dtype = MODELS[model]
    engine = byte_engine(config, dtype=dtype)
    try:
        return run(engine, requests(count))
    finally:
        engine.close()


def differing(results, expected):
    return [number for number, pair in enumerate(zip(results, expected, strict=True)) if pair[0] != pair[1]]


def with_k(generations, mode):
    """Every length from 1 to 8 in one batch."""
    return [asking(request, mode, 1 + i % 8) for i, request in enumerate(generations)]


def scripted_run(model, kind, **settings):
    config, dtype = MODELS[model]
    engine = byte_engine(config, dtype=dtype, **settings)
    answers = {number: result[0] for number, result in enumerate(plain(model))}
    engine.speculator = scripted_speculator(known(answers, kind))
    try:
        results = run(engine, with_k(requests(), "ngram"))
    finally:
        engine.close()
    return results, engine.stats()


@pytest.mark.parametrize("kind", SCRIPTED)
@pytest.mark.parametrize("model", MODELS)
def test_scripted_drafters_change_nothing(model, kind):
    results, stats = scripted_run(model, kind)
    assert differing(results, plain(model)) == []
    assert stats.num_draft_tokens > 100
    share = stats.num_accepted_tokens / stats.num_draft_tokens
    assert {"right": share == 1.0, "wrong": share < 0.05}.get(kind, 0.1 < share < 0.95)


@pytest.mark.parametrize("max_num_seqs", [1, 4])
@pytest.mark.parametrize("kind", ["random", "right"])
def test_alone_and_in_small_batches(kind, max_num_seqs):
    results, _ = scripted_run("llama-float32", kind, max_num_seqs=max_num_seqs)
    assert differing(results, plain("llama-float32")) == []


@pytest.mark.parametrize("budget", [7, 24])
def test_a_small_token_budget_cuts_drafts_and_changes_nothing(budget):
    results, stats = scripted_run("llama-float32", "alternating", max_num_batched_tokens=budget)
    assert differing(results, plain("llama-float32")) == []
    assert stats.num_accepted_tokens > 20


@pytest.mark.parametrize("noise", [0.0, 0.02, 3.0])
@pytest.mark.parametrize("model", MODELS)
def test_draft_models_change_nothing(model, noise):
    config, dtype = MODELS[model]
    draft = noisy_copy(byte_checkpoint(config), noise)
    engine = byte_engine(config, dtype=dtype, draft=draft)
    results = run(engine, with_k(requests(), "draft"))
    engine.close()
    assert differing(results, plain(model)) == []
    stats = engine.stats()
    assert stats.num_draft_tokens > 100
    if noise == 0.0:
        assert stats.num_accepted_tokens == stats.num_draft_tokens, "equal models with equal noise agree"
    if noise == 0.02:
        assert 0.2 < stats.num_accepted_tokens / stats.num_draft_tokens < 1.0


@pytest.mark.parametrize("mode", ["ngram", "auto", "off"])
@pytest.mark.parametrize("model", ["llama-float32", "gpt2-bfloat16"])
def test_every_mode_and_both_at_once(model, mode):
    config, dtype = MODELS[model]
    engine = byte_engine(
        config, dtype=dtype, draft=noisy_copy(byte_checkpoint(config), 0.02), speculation="auto"
    )
    generations = requests()
    mixed = [asking(r, mode if i % 3 else "draft", 4 if i % 2 else None) for i, r in enumerate(generations)]
    try:
        assert differing(run(engine, mixed), plain(model)) == []
        assert differing(run(engine, mixed), plain(model)) == [], "warm, with answers in the pool"
        assert differing(run(engine, generations), plain(model)) == [], "the default mode"
    finally:
        engine.close()
    assert engine.stats().num_draft_tokens > 0


@pytest.mark.parametrize("model", ["llama-float32", "gpt2-bfloat16"])
def test_after_preemption_with_a_draft_model(model):
    config, dtype = MODELS[model]
    itemsize = 4 if dtype == "float32" else 2
    block_bytes = 2 * 16 * 2 * 2 * config.num_kv_heads * config.head_dim * itemsize  # in both storages
    draft = noisy_copy(byte_checkpoint(config), 0.02)
    engine = byte_engine(
        config, dtype=dtype, draft=draft, kv_cache_memory=14 * block_bytes, max_model_len=200
    )
    assert engine.kv_cache_manager.pool.num_blocks == 14
    results = run(engine, with_k(requests(), "draft"))
    engine.close()
    assert differing(results, plain(model)) == []
    assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize("dtype", ["float32", "auto"])
@pytest.mark.parametrize("mode", ["draft", "ngram", "auto"])
def test_a_trained_pair(mode, dtype):
    target, draft = (load_checkpoint(str(PAIR / name)) for name in ("target", "draft"))
    count = int(os.environ.get("DRAFTLINE_TEST_PAIR_REQUESTS", "50"))
    config = EngineConfig(device="cpu", dtype=dtype, kv_cache_memory=2**28)
    made = requests(count, max_tokens=48, vocab_size=len(target.tokenizer.tokens), with_grammar=False)
    expected = run(build_engine(target, config).engine, made)
    engine = build_engine(target, config, draft).engine
    assert engine.speculator.default_mode is SpeculationMode.OFF
    assert differing(run(engine, with_k(made, mode)), expected) == []
    assert engine.stats().num_accepted_tokens > 0
