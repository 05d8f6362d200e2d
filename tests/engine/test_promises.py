"""What the engine promises and single faults once broke unseen; each test says which wrong line it sees."""

import asyncio
import math
import threading
import time

import pytest
import torch

from engine.bridge.async_engine import AsyncEngine
from engine.bridge.engine_thread import EngineThread
from engine.interface.sampling_params import SamplingParams
from engine.model.norm import RMSNorm
from engine.sampling.logits_processors import apply_top_k_top_p, apply_typical_p
from engine.sampling.sampler import apply_filters
from engine.speculative.draft_cache import DraftCache
from tests.drafters import asking, scripted_speculator
from tests.tiny import generate, generation, run_to_end, scripted_engine, tiny_engine

PROMPT = [5, 9, 5, 9, 17]


def logprobs_of(**params):
    engine = tiny_engine().engine
    engine.add_request(generation(PROMPT, max_tokens=5, logprobs=20, **params))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return [logprobs for output in outputs for logprobs in output.logprobs]


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"logit_bias": {3: 50.0}},
        {"allowed_token_ids": frozenset(range(10))},
        {"banned_sequences": frozenset({(3,)})},
        {"temperature": 0.3, "top_k": 2, "seed": 4},
    ],
    ids=str,
)
def test_raw_logprobs_are_before_every_processor(params):
    """Taken from the processed logits, they would be those of another distribution."""
    engine = tiny_engine().engine
    chosen = logprobs_of(**params)
    text = list(PROMPT)
    for entry in chosen:  # the model alone, asked for the same prefix
        request = engine.add_request(generation(text, max_tokens=1, logprobs=20))
        (output,) = engine.step() or engine.step()
        assert output.request is request
        assert [token for token, _ in entry.top] == [token for token, _ in output.logprobs[0].top]
        for (_, mine), (_, theirs) in zip(entry.top, output.logprobs[0].top, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        text.append(entry.token_id)


def test_max_num_seqs_is_the_most_that_run_at_once():
    engine = scripted_engine(max_num_seqs=2)
    for first in range(5):
        engine.add_request(generation([first], max_tokens=3))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, len(engine.executor.batches[-1]))
    assert most == 2


def test_drafts_are_charged_to_the_token_budget():
    engine = scripted_engine(
        max_num_batched_tokens=8, speculator=scripted_speculator(lambda request, limit: [1] * limit)
    )
    for first in range(3):
        engine.add_request(asking(generation([first], max_tokens=20), "ngram", 6))
    while engine.has_work:
        engine.step()
        assert sum(count for _, count in engine.executor.batches[-1]) <= 8


def test_blocks_are_given_back_from_the_tail():
    """The head of a sequence is shared most: it must be evicted last."""
    engine = scripted_engine(num_blocks=7)
    generate(engine, generation(range(16), max_tokens=1))
    generate(engine, generation(range(60, 76), max_tokens=1))  # takes what was freed first
    again = engine.add_request(generation([*range(12), 99], max_tokens=1))
    run_to_end(engine)
    assert again.num_cached_tokens == 12


def test_what_the_draft_model_computed_of_rejected_tokens_is_forgotten():
    engine = scripted_engine()
    request = engine.add_request(generation([1, 2, 3], max_tokens=9))
    engine.step()
    cache = DraftCache(block_size=4)
    cache.set_computed(request, request.num_tokens + 3)  # it ran ahead, and was wrong
    engine.step()
    assert cache.num_computed_tokens(request) <= request.num_committed_tokens
    run_to_end(engine)


def test_a_request_that_was_preempted_never_starts_again_in_the_same_step():
    """Its sibling has published an equal block, so it would fit at once, and lose its blocks a step later."""
    engine = scripted_engine(num_blocks=4, max_model_len=16)
    siblings = [engine.add_request(generation(range(3), choice=i, max_tokens=8)) for i in range(2)]
    while not engine.stats().num_preemptions:
        engine.step()
    assert [request_id for request_id, _ in engine.executor.batches[-1]] == [siblings[0].request_id]
    run_to_end(engine)
    assert siblings[0].token_ids == siblings[1].token_ids


def test_generation_tokens_are_counted():
    engine = scripted_engine()
    generate(engine, generation([1], max_tokens=7), generation([2], max_tokens=4))
    assert engine.stats().generation_tokens == 11
    assert engine.stats().prompt_tokens == 2


def test_the_queue_time_of_a_request_that_waited_is_not_0():
    engine = scripted_engine(max_num_seqs=1)
    engine.add_request(generation([1], max_tokens=3))
    waiting = engine.add_request(generation([2], max_tokens=1))
    waiting.arrival_time -= 5.0
    run_to_end(engine)
    assert waiting.queue_seconds >= 5.0


def test_rmsnorm_in_bfloat16_rounds_before_the_weight():
    """As training code does: rounding after the product gives other bits."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 96), (96,)))
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(RMSNorm(weight, eps=1e-5)(x), normed.bfloat16() * weight)
    assert not torch.equal(normed.bfloat16() * weight, (normed * weight.float()).bfloat16())


def test_tokens_tied_with_the_last_one_kept_stay():
    tied = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    by_p = apply_top_k_top_p(tied, torch.tensor([5]), torch.tensor([0.8]))
    assert torch.isfinite(by_p[0]).tolist() == [True, True, True, True, False]
    by_k = apply_top_k_top_p(tied, torch.tensor([2]), torch.tensor([1.0]))
    assert torch.isfinite(by_k[0]).tolist() == [True, True, True, True, False]
    even = torch.zeros(1, 6)
    assert torch.isfinite(apply_typical_p(even, torch.tensor([0.3]))).all()


def test_temperature_comes_before_the_filters():
    """At temperature 4 the four tokens share more evenly, so that top_p keeps more of them."""
    logits = torch.tensor([[4.0, 2.0, 1.0, 0.0]])
    params = SamplingParams(max_tokens=1, temperature=4.0 / 2, top_p=0.8)
    expected = []
    scaled = [math.exp(x / 2.0) for x in logits[0].tolist()]
    mass = 0.0
    for share in scaled:
        expected.append(mass < 0.8)
        mass += share / sum(scaled)
    kept = torch.isfinite(apply_filters(logits, [params])[0]).tolist()
    assert kept == expected
    assert (
        kept != torch.isfinite(apply_filters(logits, [SamplingParams(max_tokens=1, top_p=0.8)])[0]).tolist()
    )


def test_requests_of_an_event_loop_that_died_are_aborted():
    is_closed = threading.Event()

    def next_token(tokens):
        assert len(tokens) < 5 or is_closed.wait(30)
        return 1

    engine = scripted_engine(next_token)
    bridge = AsyncEngine(EngineThread(engine), max_queue=10)

    async def leave():
        stream = bridge.generate([generation([1], max_tokens=100)])
        await stream.__anext__()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    is_closed.set()
    bridge.close()  # after the step that is under way, and the abort that it brings
    assert not engine.has_work
    assert engine.num_steps < 20


@pytest.mark.parametrize("ends_by", ["output", "death"])
def test_an_event_loop_that_died_gives_its_places_in_the_queue_back(ends_by):
    """They were counted as open for ever, until the queue refused everybody."""
    is_closed = threading.Event()

    def next_token(tokens):
        assert len(tokens) < 2 or is_closed.wait(30)
        if len(tokens) > 1 and ends_by == "death":
            raise GeneratorExit  # no Exception: steps that raise one are tried again
        return 1

    bridge = AsyncEngine(EngineThread(scripted_engine(next_token, max_num_seqs=2)), max_queue=0)
    waiting = []

    async def leave():
        streams = [bridge.generate([generation([1], max_tokens=100)]) for _ in range(2)]
        await streams[0].__anext__()
        waiting.append(asyncio.ensure_future(streams[0].__anext__()))  # waking it would raise
        await asyncio.sleep(0)

    async def ask():
        return [
            token async for output in bridge.generate([generation([7])]) for token in output.new_token_ids
        ]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    is_closed.set()
    if ends_by == "output":
        assert asyncio.run(ask()) == [1] * 8
    else:
        deadline = time.monotonic() + 30
        while not bridge.is_dead and time.monotonic() < deadline:
            time.sleep(0.001)
        assert bridge.is_dead
    assert bridge.stats().num_requests_waiting == 0
    assert asyncio.run(bridge.drain(5))
    bridge.close()


@pytest.mark.parametrize("params", [{"typical_p": 1 - 1e-9}, {"top_p": 1 - 1e-9}, {"min_p": 1e-46}], ids=str)
def test_a_filter_that_float32_rounds_to_nothing_changes_nothing(params):
    """It is on for Python's floats and off for a tensor's: a row less than expected once ended the engine."""
    for kernels in ("auto", "torch"):
        engine = tiny_engine(kernels=kernels).engine
        plain, filtered = generate(
            engine,
            generation(PROMPT, temperature=1.0, seed=3),
            generation(PROMPT, temperature=1.0, seed=3, **params),
        )
        assert filtered == plain
