"""The search for thresholds against sorting, and against the filters of engine/sampling."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.kernels.cuda.filters import find_thresholds
from engine.kernels.cuda.twins.exact_math import share_of
from engine.kernels.cuda.twins.filters import find_thresholds as twin
from engine.sampling.sampler import apply_filters
from tests.engine.kernels.cuda.sampling_cases import Step, sampled_row

NEVER = float("-inf")
PARAMS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([1e-5, 0.3, 1.0, 2.0])},
    optional={
        "top_k": st.sampled_from([1, 2, 7, 50, 96, 97, 98, 5000]),
        "top_p": st.sampled_from([1e-9, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-7, 1 - 1e-9]),
        "min_p": st.sampled_from([1e-40, 1e-6, 0.01, 0.3, 1.0]),
        "typical_p": st.sampled_from([1e-9, 0.1, 0.5, 0.95, 1 - 1e-7, 1 - 1e-9]),
    },
)
SHAPES = ["normal", "coarse", "equal", "some never", "dominant", "wide", "around zero", "all never"]


def make_row(shape, vocab_size, seed):
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(vocab_size, generator=generator) * 3
    if shape == "coarse":
        row = (row * 2).round() / 2
    elif shape == "equal":
        row.fill_(row[0])
    elif shape == "some never":
        row[torch.rand(vocab_size, generator=generator) < 0.7] = NEVER
        row[3] = 0.5
    elif shape == "dominant":
        row[vocab_size // 2] = 300.0
    elif shape == "wide":
        row = row * 1e4
    elif shape == "around zero":
        row = row * torch.tensor([0.0, -0.0, 1e-40, 1e-20, 1.0]).repeat(vocab_size)[:vocab_size]
    elif shape == "all never":
        row.fill_(NEVER)
    return row


def kept(scaled, thresholds):
    least, highest, mean, limit = thresholds.unbind(1)
    distance = ((highest.unsqueeze(1) - scaled) - mean.unsqueeze(1)).abs()
    return (scaled >= least.unsqueeze(1)) & (distance <= limit.unsqueeze(1))


def found(function, rows, logits, num_candidates=2048):
    step = Step(rows, logits.shape[1], num_candidates)
    step.workspace.thresholds.fill_(math.nan)
    step.call(function, logits)
    return step.workspace.thresholds


def kept_sets(rows, logits, num_candidates=2048):
    """Return the kept set of the kernel, which is the twin's to the bit."""
    got = found(find_thresholds, rows, logits, num_candidates)
    assert torch.equal(got, found(twin, rows, logits))
    temperature = torch.tensor([row.params.temperature for row in rows]).unsqueeze(1)
    return kept(logits / temperature, got)


def explained(scaled, params, ours, theirs):
    """Tell whether two kept sets differ only by what rounding moves over a bound of shares."""
    differing = (ours != theirs).nonzero().flatten()
    if len(differing) == 0:
        return True
    highest = scaled.max()
    shares = share_of(highest - scaled).double()
    if (
        params.min_p > 0
        and ((scaled[differing] - highest).double() - math.log(params.min_p)).abs().max() < 1e-5
    ):
        return True
    base = (
        shares.sum() if params.top_k in (0, -1) else shares.sort(descending=True).values[: params.top_k].sum()
    )
    smaller = ours & theirs
    outer = ours | theirs
    for part in (params.top_p, params.typical_p):
        for total in (base, shares.sum(), shares[outer].sum()):
            for mass in (shares[smaller].sum(), shares[outer].sum()):
                if abs(mass / total - part) < 1e-6:
                    return True
    return False


@settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(st.sampled_from(SHAPES), min_size=3, max_size=3),
    params=st.lists(PARAMS, min_size=3, max_size=3),
    seed=st.integers(0, 10**6),
    num_candidates=st.sampled_from([16, 128]),
)
@example(["equal", "around zero", "dominant"], [{"temperature": 1.0, "top_k": 1}] * 3, 0, 16)
@example(["coarse"] * 3, [{"temperature": 1.0, "top_p": p} for p in (0.2, 0.5, 0.8)], 3, 16)
def test_thresholds_equal_the_sorting_twin_and_nearly_the_engine(shapes, params, seed, num_candidates):
    logits = torch.stack([make_row(shape, 97, seed + i) for i, shape in enumerate(shapes)])
    rows = [sampled_row(**p) for p in params]
    ours = kept_sets(rows, logits, num_candidates)
    for number, (row, shape) in enumerate(zip(rows, shapes, strict=True)):
        assert ours[number].any()
        if shape == "all never":
            continue
        theirs = apply_filters(logits[number : number + 1].clone(), [row.params])[0] > NEVER
        scaled = logits[number] / torch.tensor(row.params.temperature)
        mine = ours[number] & (logits[number] > NEVER)
        assert mine[scaled.argmax()] or row.params.typical_p < 1
        if row.params.typical_p >= 1:
            assert explained(scaled, row.params, mine, theirs), (row.params, mine.sum(), theirs.sum())


@pytest.mark.parametrize(
    "params", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 200, "top_p": 0.8, "min_p": 0.01}]
)
def test_random_rows_keep_what_the_engine_keeps(params):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(5)) * 3
    rows = [sampled_row(temperature=0.7, **params)] * 2
    ours = kept_sets(rows, logits, 64)
    theirs = apply_filters(logits.clone(), [row.params for row in rows]) > NEVER
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("typical_p", [0.2, 0.9])
def test_typical_sets_are_the_engines(typical_p):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(7)) * 2
    rows = [sampled_row(typical_p=typical_p, top_p=0.95)] * 2
    ours = kept_sets(rows, logits, 64)
    theirs = apply_filters(logits.clone(), [row.params for row in rows]) > NEVER
    assert torch.equal(ours, theirs)


def test_a_large_vocabulary():
    logits = torch.randn(1, 50_257, generator=torch.Generator().manual_seed(2)) * 2
    rows = [sampled_row(top_k=1000, top_p=0.9, typical_p=0.9)]
    ours = kept_sets(rows, logits)
    assert torch.equal(ours, apply_filters(logits.clone(), [rows[0].params]) > NEVER)


def test_ties_at_each_threshold_stay_together():
    logits = torch.tensor([[3.0] + [2.0] * 10 + [1.0] * 20 + [0.0] * 66])
    for params, count in (
        ({"top_k": 2}, 11), ({"top_k": 12}, 31), ({"top_p": 0.2}, 11), ({"top_p": 0.6}, 31),
        ({"min_p": 1.0}, 1), ({"min_p": math.exp(-1.0) * 0.99}, 11), ({"typical_p": 1e-9}, 20),
        ({"top_k": 2, "typical_p": 0.5}, 10),
    ):  # fmt: skip
        assert kept_sets([sampled_row(**params)], logits, 16).sum() == count, params


def test_one_token_less_than_all():
    logits = torch.arange(97.0).unsqueeze(0)
    assert kept_sets([sampled_row(top_k=96)], logits, 16)[0].nonzero().flatten().tolist() == [*range(1, 97)]


def test_minus_zero_and_zero_are_a_tie():
    logits = torch.full((1, 97), -5.0)
    logits[0, 10], logits[0, 20], logits[0, 30] = 0.0, -0.0, 1.0
    for top_k in (2, 3):
        assert kept_sets([sampled_row(top_k=top_k)], logits, 16)[0].nonzero().flatten().tolist() == [
            10,
            20,
            30,
        ]


def test_rows_without_filters_and_broken_ones_keep_everything():
    logits = torch.randn(5, 97, generator=torch.Generator().manual_seed(1))
    logits[2, 40], logits[3, 50] = math.nan, math.inf
    rows = [sampled_row(), sampled_row(temperature=0.0, top_k=3), *[sampled_row(top_p=0.5)] * 2, None]
    step = Step(rows, 97, 16)
    step.call(find_thresholds, logits)
    assert step.workspace.thresholds.tolist() == [[NEVER, 0.0, 0.0, math.inf]] * 5


def test_a_row_keeps_the_same_alone_and_among_others():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(4)) * 3
    rows = [
        sampled_row(top_p=0.7), sampled_row(top_k=9, typical_p=0.8), sampled_row(), sampled_row(min_p=0.1),
    ]  # fmt: skip
    together = found(find_thresholds, rows, logits, 16)
    backwards = found(find_thresholds, rows[::-1], logits.flip(0), 16).flip(0)
    alone = torch.cat([found(find_thresholds, [r], logits[i : i + 1], 16) for i, r in enumerate(rows)])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)
