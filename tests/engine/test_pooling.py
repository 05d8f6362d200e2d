"""Embeddings: the right hidden states, and the same bits however they were computed."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.interface.config import EngineConfig
from engine.interface.errors import RequestError
from engine.interface.outputs import FinishReason
from engine.interface.pooling import Pooling
from engine.loading.loader import build_engine
from engine.model.pooling import fixed_point_sum
from tests.engine.test_non_finite import BROKEN, broken_checkpoint
from tests.engine.test_same_tokens import EVERY_WAY, MODELS, mixed_requests
from tests.tiny import LLAMA, InMemoryTensor, generation, random_checkpoint, run_to_end, tiny_engine

RNG = random.Random(11)
SHARED = [RNG.randrange(256) for _ in range(70)]
PROMPTS = [
    SHARED[: 70 * (i % 2)] + [RNG.randrange(256) for _ in range(n)] for i, n in enumerate([1, 16, 5, 140, 33])
]
SMALL = {"device": "cpu", "kv_cache_memory": 2**20}
POOLINGS = pytest.mark.parametrize("pooling", list(Pooling))


def pooled(prompt, pooling, **more):
    return generation(prompt, max_tokens=0, pooling=pooling, **more)


def embeddings(engine, requests, others=()):
    """The embeddings of requests that run together with others."""
    added = [engine.add_request(request) for request in requests]
    for other in others:
        engine.add_request(other)
    run_to_end(engine)
    engine.check_invariants()
    assert {request.finish_reason for request in added} == {FinishReason.LENGTH}
    return [request.pooled_sum.mean() for request in added]


@MODELS
@EVERY_WAY
@POOLINGS
def test_the_same_bits_alone_or_among_others_cold_or_warm_chunked_or_preempted(config, way, pooling):
    requests = [pooled(prompt, pooling) for prompt in PROMPTS]
    alone = [embeddings(tiny_engine(config, **way).engine, [request])[0] for request in requests]
    assert len(set(alone)) == len(alone)
    engine = tiny_engine(config, **way).engine
    assert embeddings(engine, requests) == alone
    assert embeddings(engine, requests, mixed_requests()) == alone, "warm, beside answers"
    for budget in (16, 37):
        chunked = tiny_engine(config, **way, max_num_batched_tokens=budget).engine
        assert embeddings(chunked, requests, mixed_requests()) == alone, f"in chunks of {budget}"
    info = tiny_engine(config, **way).info
    tight = tiny_engine(
        config, **way, kv_cache_memory=20 * info.kv_cache_bytes // info.num_kv_blocks, max_model_len=240,
        max_num_batched_tokens=37,
    ).engine  # fmt: skip
    generations = mixed_requests()
    assert embeddings(tight, requests[::-1], generations)[::-1] == alone, "preempted"
    assert tight.stats().num_preemptions > 0


@EVERY_WAY
def test_answers_beside_embeddings_are_what_they_are_alone(way):
    def answers(engine, others):
        added = [engine.add_request(request) for request in mixed_requests()]
        for other in others:
            engine.add_request(other)
        run_to_end(engine)
        return [request.token_ids for request in added]

    others = [pooled(prompt, Pooling.MEAN) for prompt in PROMPTS]
    alone, among = (answers(tiny_engine(**way).engine, beside) for beside in ([], others))
    assert among == alone


@MODELS
@POOLINGS
def test_the_slow_twin_averages_the_normed_hidden_states_of_one_pass(config, pooling):
    engine = tiny_engine(config, kernels="torch").engine
    seen = []
    model = engine.executor.model.model
    norm = model.norm
    model.norm = lambda hidden: seen.append(norm(hidden)) or seen[-1]
    [found] = embeddings(engine, [pooled(PROMPTS[3], Pooling.MEAN)])
    states = torch.cat(seen).double()
    assert len(states) == len(PROMPTS[3])
    expected = states[-1] if pooling is Pooling.LAST else states.mean(dim=0)
    if pooling is Pooling.LAST:
        [found] = embeddings(engine, [pooled(PROMPTS[3], pooling)])
    assert np.frombuffer(found, "<f4") == pytest.approx(expected.numpy(), abs=1e-6)


@MODELS
@POOLINGS
def test_kernels_and_torch_agree(config, pooling):
    request = [pooled(PROMPTS[3], pooling)]
    fused, plain = (
        np.frombuffer(embeddings(tiny_engine(config, kernels=kernels).engine, request)[0], "<f4")
        for kernels in ("auto", "torch")
    )
    assert fused == pytest.approx(plain, abs=1e-3)


def test_the_last_token_alone_takes_its_prefix_from_the_cache_and_a_mean_does_not():
    engine = tiny_engine(max_num_batched_tokens=512).engine
    embeddings(engine, [pooled(PROMPTS[3], Pooling.LAST)])
    for pooling, num_cached in ((Pooling.LAST, len(PROMPTS[3]) - 1), (Pooling.MEAN, 0)):
        request = engine.add_request(pooled(PROMPTS[3], pooling))
        run_to_end(engine)
        assert request.num_cached_tokens == num_cached
    # What embeddings computed serves answers, too.
    answer = engine.add_request(generation(PROMPTS[3]))
    run_to_end(engine)
    assert answer.num_cached_tokens == len(PROMPTS[3]) - 1


@pytest.mark.parametrize("steps_ahead", [1, 2])
def test_steps_ahead_count_every_token_once(steps_ahead):
    request = pooled(PROMPTS[3], Pooling.MEAN)
    settings = {"kernels": "torch", "max_num_batched_tokens": 16}
    [expected] = embeddings(tiny_engine(**settings).engine, [request])
    engine = tiny_engine(**settings, steps_ahead=steps_ahead).engine
    assert embeddings(engine, [request]) == [expected]


def test_nothing_is_generated_and_the_prompt_is_counted():
    engine = tiny_engine().engine
    embeddings(engine, [pooled(PROMPTS[3], Pooling.MEAN)])
    stats = engine.stats()
    assert (stats.generation_tokens, stats.prompt_tokens) == (0, len(PROMPTS[3]))


def test_pooling_and_answers_exclude_each_other():
    with pytest.raises(RequestError, match="max_tokens must be between 0 and 0, got 3"):
        generation([1], max_tokens=3, pooling=Pooling.LAST)
    with pytest.raises(RequestError, match="max_tokens must be at least 1"):
        generation([1], max_tokens=0)


def test_an_abort_in_the_middle_leaves_nothing():
    engine = tiny_engine(max_num_batched_tokens=16).engine
    request = engine.add_request(pooled(PROMPTS[3], Pooling.MEAN))
    engine.step()
    engine.abort(request)
    run_to_end(engine)
    engine.check_invariants()
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks


def test_sums_are_the_same_in_every_order_and_cut():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(300, 64, generator=generator) * torch.logspace(-6, 3, 64)
    whole = fixed_point_sum(rows)
    assert torch.equal(fixed_point_sum(rows.flip(0)), whole)
    assert torch.equal(sum(fixed_point_sum(part) for part in rows.split(7)), whole)
    mean = whole.double() / 2**24 / len(rows)
    assert torch.allclose(mean, rows.double().mean(dim=0), atol=2**-25, rtol=0.0)


def test_a_hidden_state_beyond_every_norm_does_not_overflow_the_sum():
    rows = torch.full((2**12, 2), 3e38)
    assert fixed_point_sum(rows).tolist() == [2**56, 2**56]


@EVERY_WAY
@POOLINGS
@pytest.mark.parametrize(("name", "prompt"), [("embed_tokens", [3, BROKEN, 4]), ("norm", [3, 4])])
def test_hidden_states_that_are_not_finite_are_no_embedding(way, pooling, name, prompt):
    """In a token's embedding, or in the last norm, which keys and values never pass."""
    broken = broken_checkpoint(LLAMA, f"{name}.weight") if name != "norm" else broken_norm()
    engine = build_engine(broken, EngineConfig(**SMALL | way)).engine
    request = engine.add_request(pooled(prompt, pooling))
    run_to_end(engine)
    engine.check_invariants()
    assert request.finish_reason is FinishReason.ERROR


def broken_norm():
    checkpoint = random_checkpoint(LLAMA)
    weight = checkpoint.tensors["norm.weight"].dequantize().clone()
    weight[5] = float("-inf")
    return replace(checkpoint, tensors=checkpoint.tensors | {"norm.weight": InMemoryTensor(weight)})
