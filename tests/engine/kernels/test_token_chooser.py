"""Sampling in the CPU kernels against the plain sampler."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.rows import rows_of
from engine.kernels.cpu.library import KernelContext
from engine.kernels.cpu.token_chooser import FusedTokenChooser
from engine.sampling.noise import gumbel_noise, noise_key
from engine.sampling.sampler import Sampler, apply_filters
from tests.engine.kernels.conftest import instruction_sets
from tests.tiny import generation, tiny_engine

SETS = pytest.mark.parametrize("instruction_set", instruction_sets())


@pytest.fixture(scope="module")
def engine():
    return tiny_engine().engine


def row(engine, **params):
    """What the sampler needs of a request; its noise depends on the seed."""
    request = engine.add_request(generation([1, 2, 3], **params))
    engine.abort(request)
    return rows_of(request)[0]


def chooser(instruction_set=None):
    return FusedTokenChooser(KernelContext(num_threads=2, instruction_set=instruction_set))


def check(logits, rows, tokens):
    """Each token is the plain sampler's, or so near to it that the last bits decide."""
    for number, (sampled, token) in enumerate(zip(rows, tokens, strict=True)):
        expected = Sampler(vocab_size=logits.shape[1]).choose(logits[number : number + 1].clone(), [sampled])
        if token == expected[0]:
            continue
        assert not sampled.params.is_greedy
        kept = apply_filters(logits[number : number + 1], [sampled.params])
        key = noise_key(sampled.seed, sampled.choice, sampled.position)
        sums = kept + gumbel_noise([key], logits.shape[1], device=logits.device)
        gap = (sums[0, expected[0]] - sums[0, token]).item()
        assert abs(gap) < 1e-4, f"token {token} instead of {expected[0]}, {gap} apart: {sampled.params}"


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.sampled_from([0, 1, 2, 5, 50, 300, 5000]),
        "top_p": st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.95, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100, 777, 5000]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    params=PARAMS,
    ties=st.booleans(),
)
def test_tokens_are_the_plain_samplers(engine, seed, vocab_size, spread, temperature, params, ties):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, vocab_size, generator=generator) * spread
    if ties:
        logits = (logits * 2).round() / 2
    rows = [row(engine, temperature=temperature, seed=seed + i, **params) for i in range(6)]
    check(logits, rows, chooser()(logits, rows))


@SETS
def test_a_real_vocabulary_in_every_instruction_set(engine, instruction_set):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 49_152, generator=generator) * 2.5
    logits[3, ::2] = float("-inf")
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 50},
        {"temperature": 1.0, "top_p": 0.95},
        {"temperature": 1.3, "min_p": 0.05},
        {"temperature": 0.7, "top_k": 40_000, "top_p": 0.5, "min_p": 0.001},
    ]
    rows = [row(engine, seed=i, **kinds[i % len(kinds)]) for i in range(12)]
    check(logits, rows, chooser(instruction_set)(logits, rows))


@SETS
def test_the_noise_is_exact_in_both_tails(engine, instruction_set):
    """With equal logits the token is the one of the highest noise, whichever that is."""
    choose = chooser(instruction_set)
    logits = torch.zeros(64, 4096)
    rows = [row(engine, temperature=1.0, seed=seed) for seed in range(64)]
    tokens = choose(logits, rows)
    noise = gumbel_noise([noise_key(r.seed, r.choice, r.position) for r in rows], 4096, device=logits.device)
    assert tokens == noise.argmax(-1).tolist()


def test_a_row_is_chosen_alone(engine):
    """Filtered rows among plain and typical-p ones change nothing for their neighbours."""
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2)) * 3
    rows = [
        row(engine, temperature=1.0, seed=1),
        row(engine, temperature=1.0, seed=2, typical_p=0.5),
        row(engine, temperature=0.9, seed=3, top_p=0.8),
        row(engine, temperature=0.0),
    ]
    sampler = Sampler(vocab_size=300, chooser=chooser())
    together = sampler.choose(logits.clone(), rows)
    alone = [sampler.choose(logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(4)]
    assert together == alone


def test_draws_follow_the_distribution(engine):
    """Chi-square over 60,000 draws of five tokens."""
    choose = chooser()
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -6.0])
    sampled = row(engine, temperature=1.0, seed=0)
    counts = np.zeros(5)
    for start in range(0, 60_000, 2000):
        rows = [sampled._replace(seed=seed) for seed in range(start, start + 2000)]
        counts += np.bincount(choose(logits.expand(2000, 5).contiguous(), rows), minlength=5)
    expected = logits.softmax(-1).numpy() * 60_000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 99.9 % of chi-square with 4 degrees
