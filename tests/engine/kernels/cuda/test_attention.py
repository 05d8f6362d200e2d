"""Attention to blocks: the kernel against its twin, the twin against softmax, bits against other cuts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from engine.kernels.cuda import attention
from engine.kernels.cuda.attention_plan import SPLIT, Heads
from engine.kernels.cuda.attention_workspace import MAX_PARTIAL_BYTES, AttentionWorkspace
from engine.kernels.cuda.request_state import BLOCK_TABLE
from engine.kernels.cuda.step_buffers import StepShape
from engine.kernels.cuda.twins import attention as twin
from tests.engine.kernels.cuda.paged_requests import PagedRequests, small_heads

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}
EDGES = [(0, 1), (14, 1), (15, 1), (16, 1), (62, 1), (63, 1), (64, 1)]
RAGGED = [(0, 5), (15, 1), (60, 7)]


def workspace_for(batch, *, split=64, key_block=16, programs=1):
    return AttentionWorkspace(
        batch.heads,
        [batch.shape],
        max_positions=batch.max_positions,
        device=torch.device("cpu"),
        split=split,
        key_block_size=key_block,
        split_programs=programs,
    )


def attend(batch, attend=attention.attend, *, window=None, **options):
    """Return the outputs of the real tokens; padding must come out finite, and counters at 0."""
    workspace = workspace_for(batch, **options)
    workspace.partials.fill_(float("nan"))
    batch.query[batch.num_real :] = 0.0  # as write_kv() leaves padding
    out = batch.out.clone()
    attend(
        batch.query,
        batch.keys,
        batch.values,
        batch.buffers,
        batch.state,
        out,
        batch.shape,
        workspace,
        scale=batch.heads.head_dim**-0.5,
        window=window,
    )
    assert not workspace.counters.any()
    assert out.isfinite().all()
    return out[: batch.num_real]


def dot_of_any_shape(self, a, b, c, input_precision, max_num_imprecise_acc):
    """A product whose rows have the same bits wherever they stand: NumPy orders float32 sums by the shape."""
    product = np.matmul(a.data, b.data, dtype=np.float64) + c.data
    return TensorHandle(product.astype(np.float32), c.dtype.scalar)


def assert_right(batch, *, window=None, **options):
    expected = batch.expected(scale=batch.heads.head_dim**-0.5, window=window)
    tolerance = TOLERANCE[batch.heads.dtype]
    by_twin = attend(batch, twin.attend, window=window, **options)
    torch.testing.assert_close(by_twin.double(), expected, rtol=tolerance, atol=tolerance)
    by_kernel = attend(batch, window=window, **options)
    torch.testing.assert_close(by_kernel, by_twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "programs"), [(torch.float32, 1), (torch.float16, 1), (torch.float32, 3)])
def test_decoding_around_block_and_split_edges(dtype, programs):
    assert_right(PagedRequests(small_heads(dtype=dtype), EDGES), programs=programs)


@pytest.mark.parametrize(("tile_tokens", "programs"), [(1, 1), (5, 2), (16, 1), (64, 2)])
def test_chunks_that_begin_anywhere(tile_tokens, programs):
    batch = PagedRequests(small_heads(), RAGGED, tile_tokens=tile_tokens)
    assert_right(batch, split=32, programs=programs)


def test_a_prompt_of_many_rows_skips_masks():
    batch = PagedRequests(small_heads(dtype=torch.float16), [(37, 70)], tile_tokens=64)
    plan = workspace_for(batch).plan(batch.shape, block_size=16, has_window=False)
    assert (plan.rows, plan.skips_masks) == (128, True)
    assert_right(batch, split=32)


@pytest.mark.parametrize("window", [1, 15, 17, 40])
def test_a_window(window):
    batch = PagedRequests(small_heads(), [(20, 12), (61, 2)], tile_tokens=8)
    assert_right(batch, window=window, split=32, programs=2)


@pytest.mark.parametrize("window", [3, 32, 33, 70])
def test_a_window_over_many_rows(window):
    batch = PagedRequests(small_heads(dtype=torch.float16), [(75, 33)], tile_tokens=64, padding=0)
    assert_right(batch, window=window, split=32)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(9, 3), (16, 8), (32, 8), (12, 12), (5, 1)])
def test_head_groups(num_heads, num_kv_heads):
    heads = small_heads(num_heads, num_kv_heads)
    assert_right(PagedRequests(heads, [(31, 3)], tile_tokens=2, padding=0), split=32)


@pytest.mark.parametrize("head_dim", [20, 80, 96])
def test_head_sizes_that_are_no_powers_of_two(head_dim):
    batch = PagedRequests(small_heads(2, 1, head_dim), [(20, 6), (40, 1)], tile_tokens=4)
    assert_right(batch, split=32, programs=2)


@pytest.mark.parametrize("block_size", [8, 32, 128])
def test_block_sizes(block_size):
    batch = PagedRequests(small_heads(), RAGGED, tile_tokens=8, block_size=block_size)
    assert_right(batch, key_block=32)


@pytest.mark.parametrize("programs", [1, 2])
def test_the_split_and_the_key_block_of_the_server(programs):
    pieces = [(SPLIT - 2, 1), (SPLIT - 1, 1), (SPLIT, 1), (2 * SPLIT - 3, 5)]
    batch = PagedRequests(small_heads(), pieces, tile_tokens=5)
    assert_right(batch, split=SPLIT, key_block=None, programs=programs)


@settings(max_examples=8, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), min_size=1, max_size=2),
    tile_tokens=st.integers(1, 9),
    window=st.none() | st.integers(1, 80),
    programs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_lengths(pieces, tile_tokens, window, programs, seed):
    batch = PagedRequests(small_heads(), pieces, tile_tokens=tile_tokens, seed=seed)
    assert_right(batch, window=window, split=32, programs=programs)


@pytest.mark.parametrize(("tile_tokens", "dtype"), [(1, torch.float32), (64, torch.float16)])
@pytest.mark.parametrize("window", [None, 50])
def test_how_many_programs_share_the_splits_changes_no_bit(tile_tokens, dtype, window):
    pieces = [(31, 2), (130, 1)] if tile_tokens == 1 else [(100, 40)]
    batch = PagedRequests(small_heads(dtype=dtype), pieces, tile_tokens=tile_tokens)
    one = attend(batch, split=32, window=window)
    for programs in (2, 3, 16):
        assert torch.equal(attend(batch, split=32, programs=programs, window=window), one)


@pytest.mark.parametrize("window", [None, 40])
def test_a_token_has_its_bits_in_any_tile(window, monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_of_any_shape)
    batch = PagedRequests(small_heads(), [(0, 75)], tile_tokens=8, padding=0)
    rows = attend(batch, split=32, window=window)
    for tile_tokens, start in ((1, 74), (1, 64), (1, 31), (5, 29), (3, 63), (8, 27)):
        batch.buffers.tile_starts[0] = start
        batch.buffers.tile_lengths[0] = tile_tokens
        batch.shape = StepShape(75, 1, tile_tokens, 1)
        some = attend(batch, split=32, window=window, programs=2)
        assert torch.equal(some[start : start + tile_tokens], rows[start : start + tile_tokens])


def test_neighbours_and_padding_change_no_bit(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_of_any_shape)
    alone = PagedRequests(small_heads(), [(70, 4)], tile_tokens=4, padding=0)
    row = attend(alone, split=32)
    crowd = PagedRequests(small_heads(), [(70, 4), (33, 5), (0, 1)], tile_tokens=4, padding=3, seed=5)
    for column, block in enumerate(alone.state.block_tables[alone.requests[0]].tolist()):
        target = crowd.state.block_tables[crowd.requests[0], column]
        crowd.keys[target], crowd.values[target] = alone.keys[block], alone.values[block]
    crowd.query[:4] = alone.query[:4]
    assert torch.equal(attend(crowd, split=32, programs=3)[:4], row)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_a_padded_row_that_is_not_a_number_reaches_no_other():
    batch = PagedRequests(small_heads(), RAGGED, tile_tokens=4)
    expected = attend(batch, split=32)
    batch.keys[-1] = batch.values[-1] = float("nan")  # the null block
    workspace = workspace_for(batch, split=32, programs=3)
    arguments = (batch.query, batch.keys, batch.values, batch.buffers, batch.state, batch.out, batch.shape)
    attention.attend(*arguments, workspace, scale=0.25)
    assert torch.equal(batch.out[: batch.num_real], expected)
    assert not workspace.counters.any()


def test_blocks_beyond_two_to_the_31_numbers():
    heads = small_heads(2, 1, dtype=torch.float16)
    batch = PagedRequests(heads, [(40, 1), (17, 3)], tile_tokens=3)
    expected = attend(batch)
    num_blocks = 2**31 // (16 * 16) + 1000
    large = [sparse(num_blocks, batch.keys) for _ in range(2)]
    shift = num_blocks - len(batch.keys)
    for target, storage in zip(large, (batch.keys, batch.values), strict=True):
        target[shift:] = storage
    batch.keys, batch.values = large
    batch.state.table[:, BLOCK_TABLE:] += shift
    assert torch.equal(attend(batch, programs=2), expected)


def sparse(num_blocks, like):
    """Zeros of which the system backs only the pages that are written."""
    shape = (num_blocks, *like.shape[1:])
    return torch.from_numpy(np.zeros(int(np.prod(shape)), dtype=np.float16)).view(shape)


class TestWorkspace:
    heads = Heads(32, 8, 128, torch.bfloat16)
    decode = StepShape(1, 1, 1, 1)

    def workspace(self, shapes, max_positions=4096):
        return AttentionWorkspace(self.heads, shapes, max_positions=max_positions, device=torch.device("cpu"))

    def test_few_requests_share_their_splits_and_many_do_not(self):
        shapes = [StepShape(size, size, 1, size) for size in (1, 64, 512)]
        workspace = self.workspace(shapes)
        shared = [workspace.num_split_programs(shape) for shape in shapes]
        assert shared[0] == workspace.max_splits == 8
        assert shared == sorted(shared, reverse=True)
        assert shared[-1] == 1

    def test_partial_results_stay_below_the_limit(self):
        shapes = [StepShape(2048, 32, 64, 1), StepShape(8, 8, 1, 8)]
        workspace = self.workspace(shapes, max_positions=131072)
        assert workspace.partials.numel() * 4 <= MAX_PARTIAL_BYTES
        assert workspace.num_split_programs(shapes[0]) == 1
        assert workspace.num_split_programs(shapes[1]) > 1

    def test_a_shape_that_was_not_announced_has_one_program_a_tile(self):
        workspace = self.workspace([self.decode])
        assert workspace.num_split_programs(StepShape(2, 2, 1, 2)) == 1
