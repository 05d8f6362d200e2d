"""Tokens from the kernels against the twin to the bit, and against the plain sampler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.cuda.choose import choose
from engine.kernels.cuda.twins.choose import choose as twin
from engine.sampling.noise import gumbel_noise, noise_key
from engine.sampling.sampler import Sampler, apply_filters
from tests.engine.kernels.cuda.sampling_cases import CPU, Step, sampled_row
from tests.engine.kernels.cuda.test_filters import PARAMS, SHAPES, make_row


def chosen(function, rows, logits, vocab_size=None, **settings):
    step = Step(rows, vocab_size or logits.shape[1])
    step.buffers.results.fill_(-7)
    step.call(function, logits, **settings)
    assert (step.buffers.results[len(rows) :] == -7).all()
    return step.buffers.results[: len(rows)].tolist(), step.buffers.faults.tolist()


def check_with_sampler(logits, row, token):
    """The token is the plain sampler's, or so near to it that the logarithms' last bits decide."""
    [expected] = Sampler(vocab_size=len(logits)).choose(logits.unsqueeze(0).clone(), [row])
    if token != expected:
        key = noise_key(row.seed, row.choice, row.position)
        sums = apply_filters(logits.unsqueeze(0), [row.params]) + gumbel_noise([key], len(logits), device=CPU)
        assert not row.params.is_greedy
        assert abs(sums[0, expected] - sums[0, token]) < 1e-4


@settings(max_examples=6, deadline=None)
@given(
    shapes=st.lists(st.sampled_from(SHAPES[:-1]), min_size=3, max_size=3),
    params=st.lists(PARAMS | st.just({"temperature": 0.0}), min_size=3, max_size=3),
    seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**31 - 1),
)
def test_tokens_equal_the_twins(shapes, params, seed, position):
    logits = torch.stack([make_row(shape, 97, seed % 1000 + i) for i, shape in enumerate(shapes)])
    rows = [sampled_row(position, seed, i, **p) for i, p in enumerate(params)]
    assert chosen(choose, rows, logits) == chosen(twin, rows, logits)


def test_rows_with_a_temperature_alone_choose_what_the_sampler_chooses():
    logits = torch.randn(30, 1000, generator=torch.Generator().manual_seed(1)) * 2
    temperatures = [0.0, 1e-5, 0.5, 1.0, 2.0]
    rows = [sampled_row(i, seed=i * 7919, temperature=temperatures[i % 5]) for i in range(30)]
    tokens, _ = chosen(choose, rows, logits)
    assert (tokens, _) == chosen(twin, rows, logits)
    for row_logits, row, token in zip(logits, rows, tokens, strict=True):
        check_with_sampler(row_logits, row, token)


def test_filtered_rows_choose_what_the_sampler_chooses():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2)) * 2
    rows = [
        sampled_row(seed=i, temperature=1.5, **p)
        for i, p in enumerate([{"top_k": 5}, {"top_p": 0.4}, {"min_p": 0.2}, {"typical_p": 0.3}])
    ]
    for row_logits, row, token in zip(logits, rows, chosen(choose, rows, logits)[0], strict=True):
        check_with_sampler(row_logits, row, token)


def test_several_chunks_and_the_lowest_token_among_equals():
    logits = torch.zeros(3, 50_257)
    logits[0, [4_095, 4_096, 50_256]] = 5.0
    logits[1, [50_256, 12_288]] = 5.0
    rows = [sampled_row(temperature=0.0), sampled_row(temperature=0.0), sampled_row(seed=3)]
    tokens, faults = chosen(choose, rows, logits)
    assert (tokens, faults) == chosen(twin, rows, logits)
    assert tokens[:2] == [4_095, 12_288]
    assert not any(faults)
    check_with_sampler(logits[2], rows[2], tokens[2])


def test_logits_beyond_the_vocabulary_never_win_nor_are_faults():
    logits = torch.zeros(3, 130)
    logits[:, 97:], logits[:, 120] = 100.0, math.nan
    rows = [sampled_row(temperature=0.0), sampled_row(), sampled_row(top_p=0.9)]
    tokens, faults = chosen(choose, rows, logits, vocab_size=97)
    assert all(token < 97 for token in tokens)
    assert not any(faults)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.nan])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.5, "typical_p": 0.5}], ids=str)
def test_a_broken_logit_is_the_fault_of_its_token_alone(broken, params):
    logits = torch.zeros(3, 97)
    logits[1, 96] = broken
    rows = [sampled_row(**params)] * 3
    tokens, faults = chosen(choose, rows, logits)
    assert faults == [0, 0, 0, 1, 0, 0]  # row 1 belongs to token 3
    assert all(0 <= token < 97 for token in tokens)
    assert (tokens, faults) == chosen(twin, rows, logits)


def test_a_logit_of_minus_infinity_is_none():
    logits = torch.full((2, 97), -math.inf)
    logits[0, 50] = -1e30
    tokens, faults = chosen(choose, [sampled_row(), sampled_row(top_k=3)], logits)
    assert tokens == [50, 0]
    assert not any(faults)


def test_a_row_is_the_same_alone_among_others_and_beside_padding():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(5, 300, generator=generator) * 3
    logits[4] = math.nan  # what a padding row holds reaches nobody
    rows = [
        sampled_row(seed=1, top_p=0.7), sampled_row(seed=2, temperature=0.0), sampled_row(seed=3),
        sampled_row(seed=4, min_p=0.1), None,
    ]  # fmt: skip
    tokens, faults = chosen(choose, rows, logits)
    assert not any(faults)
    backwards, _ = chosen(choose, rows[::-1], logits.flip(0))
    alone = [chosen(choose, [row], logits[i : i + 1])[0][0] for i, row in enumerate(rows[:4])]
    assert tokens[:4] == alone == backwards[::-1][:4]


def test_rows_without_filters_are_the_same_without_the_search():
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(6)) * 3
    rows = [sampled_row(seed=1), sampled_row(seed=2, temperature=0.0), sampled_row(seed=3, temperature=2.0)]
    without = chosen(choose, rows, logits, has_filters=False)
    assert without == chosen(choose, rows, logits) == chosen(twin, rows, logits, has_filters=False)


def test_each_position_and_choice_has_noise_of_its_own():
    logits = torch.zeros(6, 97)
    rows = [sampled_row(p, seed=9, choice=c) for p in (0, 1, 2**31 - 1) for c in (0, 1)]
    assert len(set(chosen(choose, rows, logits)[0])) >= 5


def test_adjusted_rows_are_read_where_a_row_says_so():
    logits, adjusted = torch.zeros(4, 97), torch.zeros(4, 128)
    logits[:, 5], adjusted[:, 6] = 9.0, 9.0
    rows = [sampled_row(temperature=0.0)] * 2 + [sampled_row(top_k=1)] * 2
    for function in (choose, twin):
        step = Step(rows, 97)
        step.workspace.is_adjusted[[1, 3]] = 1
        step.call(function, logits, adjusted=adjusted)
        assert step.buffers.results[:4].tolist() == [5, 6, 5, 6]
