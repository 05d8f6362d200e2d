"""A bitmask applied by the kernels against torch."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.cpu.token_mask import forbid, forbid_in_torch


@settings(max_examples=100, deadline=None)
@given(num_tokens=st.integers(1, 400), seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_the_same_tokens_are_removed(num_tokens, seed, share):
    rng = np.random.default_rng(seed)
    bits = np.zeros(-(-num_tokens // 32) * 32, dtype=np.bool_)
    bits[:num_tokens] = rng.random(num_tokens) < share
    words = np.packbits(bits, bitorder="little").view(np.uint32)
    logits = torch.from_numpy(rng.standard_normal(num_tokens + 3).astype(np.float32))
    mine, theirs = logits.clone(), logits.clone()
    forbid(mine[:num_tokens], words)
    forbid_in_torch(theirs[:num_tokens], words)
    assert torch.equal(mine, theirs)
    assert torch.equal(mine[num_tokens:], logits[num_tokens:]), "nothing behind the row is touched"
