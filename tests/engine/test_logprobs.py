"""Logprobs of answers and prompts: right, and the same however they were computed."""

import math

import pytest
import torch

from engine.interface.errors import RequestError
from engine.interface.outputs import FinishReason
from tests.tiny import GPT2, LLAMA, generation, run_to_end, tiny_engine

PROMPT = [(7 * i * i + 3) % 256 for i in range(75)]


def scores(engine, *requests):
    """Answers with the logprobs of each request's tokens, and of its prompt."""
    added = [engine.add_request(request) for request in requests]
    logprobs = {request.request_id: [] for request in added}
    while engine.has_work:
        for output in engine.step():
            logprobs[output.request.request_id] += output.logprobs
    return [(request, logprobs[request.request_id]) for request in added]


def dense_logprobs(config, token_ids):
    """The slow twin: one pass over all tokens, every position's distribution."""
    engine = tiny_engine(config, max_num_batched_tokens=512).engine
    request = engine.add_request(generation(token_ids, max_tokens=0, prompt_logprobs=20))
    run_to_end(engine)
    return request.prompt_logprobs


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_same_alone_batched_cached_chunked_and_preempted(config):
    wanted = generation(PROMPT, max_tokens=10, logprobs=5, prompt_logprobs=2, temperature=1.0, seed=3)
    others = [generation(PROMPT[i:], max_tokens=12, temperature=1.0, seed=i) for i in (1, 9, 30)]
    [(request, expected)] = scores(tiny_engine(config).engine, wanted)
    assert len(expected) == 10
    assert len(request.prompt_logprobs) == len(PROMPT) - 1
    block_bytes = 16 * 2 * 2 * config.num_kv_heads * config.head_dim * 4
    for settings in (
        {},
        {"max_num_batched_tokens": 16},
        {"enable_prefix_caching": False},
        {"kv_cache_memory": 10 * block_bytes, "max_model_len": 100},
    ):
        engine = tiny_engine(config, **settings).engine
        for _ in range(2):
            _, (again, logprobs), *_ = scores(engine, others[0], wanted, *others[1:])
            assert logprobs == expected, settings
            assert again.prompt_logprobs == request.prompt_logprobs, settings
    assert engine.stats().num_preemptions > 0


def test_answer_logprobs_are_the_models_own_whatever_the_sampling():
    params = {"max_tokens": 6, "logprobs": 20, "temperature": 0.5, "top_k": 3, "seed": 1}
    [(request, logprobs)] = scores(tiny_engine().engine, generation(PROMPT, **params))
    by_scoring = dense_logprobs(LLAMA, request.token_ids)[len(PROMPT) - 1 :]
    for answer, scored in zip(logprobs, by_scoring, strict=True):
        assert answer.token_id == scored.token_id
        assert answer.logprob == pytest.approx(scored.logprob, abs=1e-4)
        assert [token for token, _ in answer.top] == [token for token, _ in scored.top]
        assert answer.top[0][1] >= answer.logprob


def test_processed_logprobs_are_after_the_filters_and_finite():
    params = {"max_tokens": 6, "logprobs": 5, "temperature": 0.5, "top_k": 3, "seed": 1}
    [(_, logprobs)] = scores(tiny_engine().engine, generation(PROMPT, processed_logprobs=True, **params))
    for entry in logprobs:
        assert len(entry.top) == 3
        assert sum(math.exp(p) for _, p in entry.top) == pytest.approx(1.0, abs=1e-5)
        assert entry.token_id in {token for token, _ in entry.top}


def test_prompt_logprobs_are_a_log_softmax_of_the_right_rows():
    engine = tiny_engine(max_num_batched_tokens=512).engine
    rows = []
    model = engine.executor.model.decoder
    compute = model.compute_logits
    model.compute_logits = lambda hidden: rows.append(compute(hidden)) or rows[-1]
    request = engine.add_request(generation(PROMPT, max_tokens=0, prompt_logprobs=0))
    run_to_end(engine)
    expected = torch.cat(rows).double().log_softmax(dim=-1)
    assert [p.token_id for p in request.prompt_logprobs] == PROMPT[1:]
    for position, entry in enumerate(request.prompt_logprobs):
        assert entry.logprob == pytest.approx(expected[position, PROMPT[position + 1]].item(), abs=1e-5)
        assert entry.top == ()


def test_scoring_alone_generates_nothing():
    engine = tiny_engine().engine
    request = engine.add_request(generation(PROMPT, max_tokens=0, prompt_logprobs=1))
    run_to_end(engine)
    assert request.finish_reason is FinishReason.LENGTH
    assert request.num_output_tokens == 0
    assert engine.stats().generation_tokens == 0
    assert engine.stats().prompt_tokens == len(PROMPT)
    single = engine.add_request(generation([5], max_tokens=0, prompt_logprobs=1))
    run_to_end(engine)
    assert single.prompt_logprobs == []


def test_a_warm_cache_takes_no_score_away():
    engine = tiny_engine().engine
    scores(engine, generation(PROMPT))
    [(request, _)] = scores(engine, generation(PROMPT, max_tokens=0, prompt_logprobs=1))
    assert len(request.prompt_logprobs) == len(PROMPT) - 1
    assert request.num_cached_tokens == 0


def test_the_number_of_top_logprobs_is_bounded():
    engine = tiny_engine().engine
    [(_, none), (_, most)] = scores(engine, generation(PROMPT, logprobs=0), generation(PROMPT, logprobs=100))
    assert {len(entry.top) for entry in none} == {0}
    assert {len(entry.top) for entry in most} == {100}
    for bad in (-1, 101, 2**40):
        with pytest.raises(RequestError, match="logprobs must be between 0 and 100"):
            generation(PROMPT, logprobs=bad)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_hundred_likeliest_are_the_first_of_a_whole_log_softmax(config):
    engine = tiny_engine(config, max_num_batched_tokens=512).engine
    rows = []
    model = engine.executor.model.decoder
    compute = model.compute_logits
    model.compute_logits = lambda hidden: rows.append(compute(hidden)) or rows[-1]
    [(request, [answer])] = scores(
        engine, generation(PROMPT, max_tokens=1, logprobs=100, prompt_logprobs=100, temperature=1.0, seed=5)
    )
    entries = [*request.prompt_logprobs, answer]
    expected = torch.cat(rows).log_softmax(dim=-1).sort(dim=-1, descending=True)
    assert len(entries) == len(expected.values) == len(PROMPT)
    for entry, values, token_ids in zip(entries, expected.values, expected.indices, strict=True):
        assert entry.top == tuple(zip(token_ids[:100].tolist(), values[:100].tolist(), strict=True))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_all_logprobs_are_those_of_the_likeliest_to_the_bit_whatever_runs_beside_them(kernels):
    wanted = generation(PROMPT, max_tokens=1, logprobs=0, all_logprobs=True)
    [(_, [hundred])] = scores(
        tiny_engine(kernels=kernels).engine, generation(PROMPT, max_tokens=1, logprobs=100)
    )
    others = [generation(PROMPT[i:], max_tokens=12, temperature=1.0, seed=i, logprobs=i % 3) for i in (1, 9)]
    found = set()
    for settings in ({}, {"max_num_batched_tokens": 16}, {"enable_prefix_caching": False}):
        engine = tiny_engine(kernels=kernels, **settings).engine
        for _ in range(2):  # cold, then cached
            _, (_, [score]), (_, beside) = scores(engine, others[0], wanted, others[1])
            assert all(one.all_logprobs is None for one in beside)
            found.add(score.all_logprobs)
    [content] = found
    values = torch.frombuffer(bytearray(content), dtype=torch.float32)
    assert len(values) == LLAMA.vocab_size
    assert values.double().exp().sum() == pytest.approx(1.0, abs=1e-5)
    assert [(token, values[token].item()) for token, _ in hundred.top] == list(hundred.top)
    assert values.argmax() == hundred.token_id


@pytest.mark.parametrize("params", [{"max_tokens": 2, "logprobs": 0}, {"max_tokens": 1}])
def test_all_logprobs_are_for_one_token_beside_its_own(params):
    with pytest.raises(RequestError, match="all_logprobs needs logprobs, and max_tokens 1"):
        generation(PROMPT, all_logprobs=True, **params)


def test_penalties_bias_and_bans_keep_the_promise_in_every_batch():
    requests = [
        generation(PROMPT[:40], max_tokens=20, seed=i, temperature=1.0, **params)
        for i, params in enumerate(
            [
                {"repetition_penalty": 1.3},
                {"frequency_penalty": 1.0, "presence_penalty": 0.5},
                {"logit_bias": {5: 8.0, 9: -100.0}},
                {"banned_sequences": frozenset({(9,), (5, 6)}), "min_tokens": 4},
                {"typical_p": 0.7, "allowed_token_ids": frozenset(range(90))},
            ]
        )
    ]
    alone = [scores(tiny_engine().engine, request)[0][0].token_ids for request in requests]
    together = [request.token_ids for request, _ in scores(tiny_engine().engine, *requests)]
    assert together == alone
    assert max(alone[4][40:]) < 90
    assert 9 not in alone[3][40:]
