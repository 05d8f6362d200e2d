"""The check of attention at the start: it finds a card on which a kind of step has bits of its own."""

import pytest
import torch

from engine.kernels.cuda import attention
from engine.kernels.cuda.attention_numerics import check_attention
from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.twins.attention import attend

HEADS = Heads(2, 1, 16, torch.float32)


def check(kernel):
    return check_attention(kernel, HEADS, block_size=16, device=torch.device("cpu"))


def test_the_twin_has_one_way_to_add():
    assert check(attend) == []


@pytest.mark.parametrize("width", [4, 16, 64])
def test_a_width_that_adds_in_another_order_is_named(width):
    def other(query, keys, values, buffers, state, out, shape, workspace, **kwargs):
        attend(query, keys, values, buffers, state, out, shape, workspace, **kwargs)
        if shape.tile_tokens == width:
            out[45, 3] += 1e-7 * out[45, 3].abs() + 1e-7

    assert check(other) == [f"attention of 16: other bits in tiles of {width} tokens"]


def test_every_token_and_every_key_is_asked_for():
    seen = set()

    def noted(query, keys, values, buffers, state, out, shape, workspace, **kwargs):
        for tile in range(shape.num_tiles):
            start, length = int(buffers.tile_starts[tile]), int(buffers.tile_lengths[tile])
            seen.update((shape.tile_tokens, token) for token in range(start, start + length))
        assert buffers.positions[0] < workspace.split <= buffers.positions[-1]
        out.zero_()

    assert check(noted) == []
    assert seen == {(width, token) for width in (1, 4, 16, 64) for token in range(80)}


def test_the_kernel_runs_it():
    """Its bits are another matter: NumPy adds as it likes."""
    check(attention.attend)
