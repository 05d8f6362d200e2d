"""A bitmask applied by the kernels against torch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.cpu import token_bitmask as kernels
from engine.sampling import token_bitmask as in_torch


@settings(max_examples=100, deadline=None)
@given(
    num_tokens=st.integers(1, 400),
    num_words=st.integers(1, 13),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
def test_the_same_tokens_are_removed(num_tokens, num_words, seed, share):
    rng = np.random.default_rng(seed)
    mask = np.packbits(rng.random(32 * num_words) < share, bitorder="little").tobytes()
    logits = torch.from_numpy(rng.standard_normal(num_tokens + 3).astype(np.float32))
    mine, theirs = logits.clone(), logits.clone()
    kernels.apply_token_bitmask(mine[:num_tokens], mask)
    in_torch.apply_token_bitmask(theirs[:num_tokens], mask)
    assert torch.equal(mine, theirs)
    assert torch.equal(mine[num_tokens:], logits[num_tokens:]), "nothing behind the row is touched"
    kept = [
        token for token in range(num_tokens) if token < 32 * num_words and mask[token // 8] >> token % 8 & 1
    ]
    assert theirs[:num_tokens].isfinite().nonzero().flatten().tolist() == kept
