"""Logprobs from the kernels against engine/sampling and the twin."""

import math

import pytest
import torch

from engine.kernels.cuda.top_logprobs import top_logprobs
from engine.kernels.cuda.twins.top_logprobs import top_logprobs as twin
from engine.sampling.logprobs import token_logprobs
from tests.engine.kernels.cuda.sampling_cases import Step, sampled_row


def logprobs(function, logits, chosen, tops, vocab_size=None):
    step = Step([sampled_row()] * len(logits), vocab_size or logits.shape[1])
    step.buffers.results[: len(logits)] = torch.tensor(chosen, dtype=torch.int32)
    values = torch.full((len(logits), tops), math.nan)
    ids = torch.full((len(logits), tops), -9, dtype=torch.int32)
    out = torch.full((len(logits),), math.nan)
    function(logits, step.buffers, len(logits), tops, values, ids, out, step.workspace)
    return values, ids, out


@pytest.mark.parametrize("tops", [0, 1, 5, 20])
def test_logprobs_are_the_engines(tops):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(tops)) * 3
    chosen = [17, 999]
    values, ids, out = logprobs(top_logprobs, logits, chosen, tops)
    for number, expected in enumerate(token_logprobs(logits, chosen, [tops] * 2)):
        assert out[number].item() == pytest.approx(expected.logprob, abs=2e-6)
        assert ids[number].tolist() == [token for token, _ in expected.top]
        assert values[number].tolist() == pytest.approx([value for _, value in expected.top], abs=2e-6)
    check_twin(logits, chosen, tops)


def check_twin(logits, chosen, tops, vocab_size=None):
    values, ids, out = logprobs(top_logprobs, logits, chosen, tops, vocab_size)
    twin_values, twin_ids, twin_out = logprobs(twin, logits, chosen, tops, vocab_size)
    assert torch.equal(ids, twin_ids)
    torch.testing.assert_close(values, twin_values, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(out, twin_out, rtol=1e-6, atol=2e-6)
    return values, ids, out


def test_ties_go_to_the_lower_token_across_parts():
    logits = torch.zeros(1, 50_257)
    logits[0, [4_095, 4_096, 50_256, 9]] = torch.tensor([5.0, 5.0, 7.0, 5.0])
    _, ids, _ = check_twin(logits, [4_096], 5)
    assert ids[0].tolist() == [50_256, 9, 4_095, 4_096, 0]


def test_tokens_that_cannot_come_are_left_out():
    logits = torch.full((2, 97), -math.inf)
    logits[0, [90, 3]] = torch.tensor([1.0, 0.0])
    logits[1] = 0.0
    values, ids, _ = check_twin(logits, [3, 0], 4)
    assert ids.tolist() == [[90, 3, -1, -1], [0, 1, 2, 3]]
    assert values[0, 2:].tolist() == [-math.inf] * 2


def test_a_whole_part_that_cannot_come_is_no_nan():
    logits = torch.full((1, 5_000), -math.inf)
    logits[0, 4_990] = 2.0
    values, ids, out = check_twin(logits, [4_990], 2)
    assert (values[0, 0], ids[0, 0], out[0]) == (0.0, 4_990, 0.0)


def test_a_vocabulary_smaller_than_the_top_and_padding_of_the_head():
    logits = torch.arange(20.0).repeat(1, 1)
    _, ids, _ = check_twin(logits, [6], 20, vocab_size=7)
    assert ids[0].tolist() == [6, 5, 4, 3, 2, 1, 0] + [-1] * 13


def test_a_row_has_the_same_bits_alone_and_among_others():
    logits = torch.randn(3, 5_000, generator=torch.Generator().manual_seed(3)) * 4
    together = logprobs(top_logprobs, logits, [1, 2, 3], 3)
    for number in range(3):
        alone = logprobs(top_logprobs, logits[number : number + 1], [number + 1], 3)
        assert all(torch.equal(a[0], t[number]) for a, t in zip(alone, together, strict=True))
