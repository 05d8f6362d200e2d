"""Processors against naive twins, the sampler against exact distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.request import Request
from engine.core.rows import rows_of
from engine.interface.sampling_params import SamplingParams
from engine.sampling.logits_processors import apply_min_p, apply_temperature, apply_top_k_top_p
from engine.sampling.noise import gumbel_noise, noise_key
from engine.sampling.row_processors import needs_processing, process_row
from engine.sampling.sampler import Sampler, apply_filters
from engine.sampling.token_bitmask import apply_token_bitmask


def request(*, seed=1, choice=0, num_tokens=3, stop=(), **params):
    return Request(
        request_id=0,
        prompt_token_ids=tuple(range(num_tokens)),
        params=SamplingParams(max_tokens=99, **params),
        seed=seed,
        choice=choice,
        root_hash=b"",
        stop_token_ids=frozenset(stop),
        max_total_tokens=1000,
    )


def row(**settings):
    return rows_of(request(**settings))[0]


def naive_kept(logits, *, top_k=0, top_p=1.0, min_p=0.0):
    """The set of surviving token ids, by plain sorting; ties with the last one kept survive."""
    ordered = sorted(logits, reverse=True)
    threshold = ordered[top_k - 1] if 0 < top_k < len(logits) else ordered[-1]
    kept = [x for x in ordered if x >= threshold]
    if top_p < 1.0:
        total = sum(math.exp(x - ordered[0]) for x in kept)
        mass, last = 0.0, kept[0]
        for x in kept:
            if mass >= top_p:
                break
            last, mass = x, mass + math.exp(x - ordered[0]) / total
        threshold = max(threshold, last)
    if min_p > 0.0:
        threshold = max(threshold, ordered[0] + math.log(min_p))
    return {i for i, x in enumerate(logits) if x >= threshold - 1e-12}


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.integers(-30, 30).map(lambda x: x / 4), min_size=1, max_size=40),
    top_k=st.integers(1, 50),
    top_p=st.sampled_from([0.01, 0.13, 0.37, 0.61, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
)
def test_filters_keep_the_same_tokens_as_plain_sorting(logits, top_k, top_p, min_p):
    rows = torch.tensor([logits, logits[::-1]], dtype=torch.float32)
    k = torch.full((2,), min(top_k, len(logits)))
    out = apply_min_p(apply_top_k_top_p(rows, k, torch.full((2,), top_p)), torch.full((2,), min_p))
    for row, source in zip(out.tolist(), (logits, logits[::-1]), strict=True):
        expected = naive_kept(source, top_k=min(top_k, len(logits)), top_p=top_p, min_p=min_p)
        assert {i for i, x in enumerate(row) if x > -math.inf} == expected
        assert all(x == source[i] for i, x in enumerate(row) if x > -math.inf)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_ordering_a_head_gives_the_bits_of_ordering_all(spread):
    generator = torch.Generator().manual_seed(int(spread * 10))
    logits = (torch.randn(40, 3_000, generator=generator) * spread).to(torch.bfloat16).float()  # many ties
    top_k = torch.tensor([1, 2, 7, 8, 9, 100, 2_999, 3_000]).repeat(5)
    top_p = torch.tensor([0.001, 0.3, 0.9, 0.999, 1.0]).repeat_interleave(8)
    whole = apply_top_k_top_p(logits, top_k, top_p, head_sizes=())
    for head_sizes in ((1,), (8, 300), (300,), (1024, 2048), (5_000,)):
        assert torch.equal(apply_top_k_top_p(logits, top_k, top_p, head_sizes=head_sizes), whole)


def test_a_row_keeps_the_same_tokens_alone_and_among_others():
    logits = torch.randn(5, 49_152, generator=torch.Generator().manual_seed(3)) * 2
    k, p = torch.full((5,), 49_152), torch.tensor([0.1, 0.5, 0.9, 0.99, 0.999])
    whole = apply_top_k_top_p(logits, k, p)
    for i in range(5):
        alone = apply_top_k_top_p(logits[i : i + 1], k[:1], p[i : i + 1])
        assert torch.equal(alone[0], whole[i])


def test_each_row_has_its_own_temperature():
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert apply_temperature(logits, torch.tensor([0.5, 2.0])).tolist() == [[2.0, 4.0], [0.5, 1.0]]


SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    {"logit_bias": {0: -1.5, 7: 6.0}, "allowed_token_ids": frozenset({0, 2, 3, 5, 7})},
    {"repetition_penalty": 1.4, "frequency_penalty": 0.4, "presence_penalty": -0.5},
]
LOGITS = [2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -6.0]
PROMPT, ANSWER = [1, 1, 4], [0, 6, 0]  # what the penalties see


def exact_weights(params):
    """The distribution that the chain should give, by plain arithmetic."""
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | params
    logits = list(LOGITS)
    for i in range(len(logits)):
        if i in PROMPT + ANSWER:
            penalty = params.get("repetition_penalty", 1.0)
            logits[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
        logits[i] -= params.get("frequency_penalty", 0.0) * ANSWER.count(i)
        logits[i] -= params.get("presence_penalty", 0.0) * (i in ANSWER)
        logits[i] += params.get("logit_bias", {}).get(i, 0.0)
    scaled = [x / full["temperature"] for x in logits]
    kept = naive_kept(scaled, top_k=full["top_k"], top_p=full["top_p"], min_p=full["min_p"])
    if "typical_p" in params:
        kept = naive_typical(scaled, params["typical_p"])
    kept &= params.get("allowed_token_ids", set(range(len(logits))))
    weights = torch.tensor([math.exp(x) if i in kept else 0.0 for i, x in enumerate(scaled)])
    return weights / weights.sum()


def naive_typical(logits, share):
    total = sum(math.exp(x) for x in logits)
    surprise = [math.log(total) - x for x in logits]
    entropy = sum(math.exp(-s) * s for s in surprise)
    kept, mass = set(), 0.0
    for i in sorted(range(len(logits)), key=lambda i: abs(surprise[i] - entropy)):
        if mass >= share:
            break
        kept.add(i)
        mass += math.exp(-surprise[i])
    return kept


@pytest.mark.parametrize("seed", [0, 1, -(2**40)])
@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_draws_follow_the_exact_distribution(params, seed):
    """Chi-square of 100,000 positions against the exact softmax; the bound is about five sigma."""
    num_draws, at_once, sampler = 100_000, 5_000, Sampler(vocab_size=8)
    counts = torch.zeros(8)
    drawn = request(seed=seed, num_tokens=0, **params)
    logits = torch.tensor([LOGITS])
    for token_id in ANSWER:
        drawn.append(token_id)
    drawn.token_ids[:0] = PROMPT
    row = logits.clone()
    [at] = rows_of(drawn)
    if needs_processing(at):
        process_row(row[0], at, apply_token_bitmask)
    assert sampler(logits, [at]).token_ids[0] in range(8)
    survivors = apply_filters(row, [drawn.params])
    for start in range(0, num_draws, at_once):
        keys = [noise_key(seed, 0, start + i) for i in range(at_once)]
        tokens = (gumbel_noise(keys, 8, device=torch.device("cpu")) + survivors).argmax(dim=-1)
        counts += torch.bincount(tokens, minlength=8)
    expected = exact_weights(params) * num_draws
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum().item()
    freedom = int((expected > 0).sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("vocab_size", [500, 49_152])
def test_a_row_depends_on_itself_alone(vocab_size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, vocab_size, generator=generator) * 3
    rows = [
        row(temperature=0.0),
        row(seed=7),
        row(seed=7, choice=1),
        row(seed=8, top_k=5),
        row(seed=9, top_p=0.5, temperature=1.5),
        row(seed=10, min_p=0.1),
    ]
    sampler = Sampler(vocab_size=vocab_size)
    together = sampler(logits, rows).token_ids
    alone = [sampler(logits[i : i + 1], [r]).token_ids[0] for i, r in enumerate(rows)]
    backwards = sampler(logits.flip(0), rows[::-1]).token_ids[::-1]
    assert list(together) == alone == list(backwards)


def test_padding_rows_of_the_head_never_win():
    logits = torch.zeros(2, 10)
    logits[:, 8:] = 100.0
    assert all(t < 8 for t in Sampler(vocab_size=8)(logits, [row(temperature=0.0), row()]).token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, -0.0, 1e-45])
def test_a_vanishing_temperature_is_greedy(temperature):
    logits = torch.tensor([[1.0, 1.001, 0.0]])
    assert Sampler(vocab_size=3)(logits, [row(temperature=temperature)]).token_ids == (1,)


def test_stop_tokens_cannot_come_before_min_tokens():
    logits = torch.tensor([[0.0, 9.0, 1.0]])
    early = request(temperature=0.0, min_tokens=2, stop=(1,))
    assert Sampler(vocab_size=3)(logits.clone(), rows_of(early)).token_ids == (2,)
    early.append(2)
    early.append(2)
    assert Sampler(vocab_size=3)(logits.clone(), rows_of(early)).token_ids == (1,)
