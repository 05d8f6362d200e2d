"""Paged attention against dense attention, and its bits against themselves in other batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.attention import paged_attention
from engine.model.attention_tiles import QuerySpan, build_tile_groups
from engine.model.kv_storage import LayerKV

CPU = torch.device("cpu")


class Sequences:
    """Random sequences in a random paged layout, and their dense keys and values."""

    def __init__(
        self, lengths, *, block_size=16, num_heads=6, num_kv_heads=2, head_dim=16, dtype=torch.float32
    ):
        generator = torch.Generator().manual_seed(sum(lengths))
        self.block_size, self.head_dim = block_size, head_dim
        num_blocks = sum(-(-n // block_size) for n in lengths) + 1
        free = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
        shape = (num_kv_heads, num_blocks, block_size, head_dim)
        self.layer_kv = LayerKV(keys=torch.zeros(shape, dtype=dtype), values=torch.zeros(shape, dtype=dtype))
        self.tables, self.queries, self.keys, self.values = [], [], [], []
        for n in lengths:
            table = [free.pop() for _ in range(-(-n // block_size))]
            slots = torch.tensor([table[p // block_size] * block_size + p % block_size for p in range(n)])
            q = torch.randn(n, num_heads, head_dim, generator=generator).to(dtype)
            k, v = (torch.randn(n, num_kv_heads, head_dim, generator=generator).to(dtype) for _ in "kv")
            self.layer_kv.write(slots, k, v)
            self.tables.append(table)
            self.queries.append(q)
            self.keys.append(k)
            self.values.append(v)

    def paged(self, spans):
        """Attention of [(sequence, first, count), ...] in one batch, a list of outputs."""
        query, built, start = [], [], 0
        for sequence, first, count in spans:
            query.append(self.queries[sequence][first : first + count])
            built.append(QuerySpan(start, count, first, self.tables[sequence]))
            start += count
        groups = build_tile_groups(built, block_size=self.block_size, device=CPU)
        out = paged_attention(
            torch.cat(query), self.layer_kv.keys, self.layer_kv.values, groups, scale=self.head_dim**-0.5
        )
        return list(out.split([count for _, _, count in spans]))

    def dense(self, sequence, first, count):
        """The slow twin, in float64."""
        q, k, v = (x[sequence].double() for x in (self.queries, self.keys, self.values))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[first : first + count], k) * self.head_dim**-0.5
        later = torch.arange(len(k))[None, :] > torch.arange(first, first + count)[:, None]
        weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


spans_of_three = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 140)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    spans=spans_of_three,
    block_size=st.sampled_from([1, 4, 16, 128]),
    heads=st.sampled_from([(6, 2), (9, 3), (4, 4), (4, 1)]),
    head_dim=st.sampled_from([8, 16, 64]),
)
def test_paged_equals_dense(spans, block_size, heads, head_dim):
    lengths = [length for length, _ in spans]
    sequences = Sequences(
        lengths, block_size=block_size, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim
    )
    batch = [(i, max(0, n - count), min(n, count)) for i, (n, count) in enumerate(spans)]
    for span, out in zip(batch, sequences.paged(batch), strict=True):
        torch.testing.assert_close(out.double(), sequences.dense(*span), atol=2e-6, rtol=2e-5)


def test_bfloat16_stays_within_its_precision():
    sequences = Sequences([200, 77], dtype=torch.bfloat16)
    for span, out in zip(
        [(0, 150, 50), (1, 76, 1)], sequences.paged([(0, 150, 50), (1, 76, 1)]), strict=True
    ):
        torch.testing.assert_close(out.double(), sequences.dense(*span), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "head_dim"), [((9, 3), 64), ((12, 12), 64), ((5, 1), 16), ((1, 1), 8)])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_in_any_chunk(dtype, heads, head_dim):
    lengths = [300, 1, 129, 128, 257, 40, 290, 16]
    sequences = Sequences(lengths, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, dtype=dtype)
    alone = {
        (i, position): sequences.paged([(i, position, 1)])[0][0]
        for i, n in enumerate(lengths)
        for position in {0, n // 3, n - 2, n - 1}
        if position >= 0
    }
    together = sequences.paged([(i, n - 1, 1) for i, n in enumerate(lengths)])
    for i, n in enumerate(lengths):
        assert torch.equal(together[i][0], alone[i, n - 1]), f"decode of sequence {i} depends on the batch"
    for chunk in (2, 5, 16, 100, 128, 300):
        for i, n in enumerate(lengths):
            outs = sequences.paged([(i, first, min(chunk, n - first)) for first in range(0, n, chunk)])
            whole = torch.cat(outs)
            for (j, position), row in alone.items():
                if j == i:
                    assert torch.equal(whole[position], row), (
                        f"sequence {i}, position {position}, chunk {chunk}"
                    )
