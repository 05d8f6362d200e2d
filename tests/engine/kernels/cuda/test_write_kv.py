"""Norms, rotation and the write of keys and values: the kernel against its twin, that against the model."""

import numpy as np
import pytest
import torch

from engine.checkpoint.model_config import RopeConfig
from engine.kernels.cuda import write_kv
from engine.kernels.cuda.head_transform import HeadNorms, RotaryTables
from engine.kernels.cuda.request_state import BLOCK_TABLE
from engine.kernels.cuda.twins import write_kv as twin
from engine.model.norm import RMSNorm
from engine.model.rope import Rope, rotate
from tests.engine.kernels.cuda.paged_requests import PagedRequests, small_heads

PIECES = [(0, 3), (15, 2), (33, 1)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}


class Step:
    """A step's products and the pool that they go to, all of it NaN before."""

    def __init__(self, heads, *, rotary=True, norms=True, block_size=16, padding=2):
        self.batch = PagedRequests(heads, PIECES, block_size=block_size, padding=padding)
        self.heads, self.num_tokens = heads, self.batch.shape.num_tokens
        self.batch.keys.fill_(float("nan"))
        self.batch.values.fill_(float("nan"))
        width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
        self.qkv = self.batch.numbers(self.num_tokens, width)
        self.qkv[self.batch.num_real :] = float("nan")
        self.rope = Rope(
            RopeConfig(theta=10000.0),
            head_dim=heads.head_dim,
            max_positions=self.batch.max_positions,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.rotary = RotaryTables(self.rope.cos, self.rope.signed_sin) if rotary else None
        weights = [self.batch.numbers(heads.head_dim) for _ in range(2)]
        self.norms = HeadNorms(*weights, eps=1e-6) if norms else None
        self.query = torch.full_like(self.batch.query, 7.0)

    def run(self, write):
        """Return keys, values, queries and faults after a write."""
        batch = self.batch
        batch.buffers.faults.zero_()
        keys, values, query = batch.keys.clone(), batch.values.clone(), self.query.clone()
        write.write_kv(
            self.qkv,
            self.rotary,
            self.norms,
            batch.buffers,
            batch.state,
            keys,
            values,
            query,
            self.num_tokens,
            self.heads.num_heads,
        )
        return keys, values, query, batch.buffers.faults.clone()

    def heads_of(self, token):
        """What the model makes of a real token: query, key and value heads."""
        heads = self.heads
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        query, key, value = self.qkv[token].view(1, -1, heads.head_dim).split(sizes, dim=1)
        if self.norms:
            query = RMSNorm(self.norms.query_weight, eps=self.norms.eps)(query)
            key = RMSNorm(self.norms.key_weight, eps=self.norms.eps)(key)
        if self.rotary:
            angles = self.rope.at(self.batch.buffers.positions[token : token + 1].long())
            query, key = (rotate(x.float(), *angles).to(x.dtype) for x in (query, key))
        return query[0], key[0], value[0]

    def slot(self, token):
        position = int(self.batch.buffers.positions[token])
        request = int(self.batch.buffers.token_requests[token])
        block = self.batch.state.table[request, BLOCK_TABLE + position // self.batch.block_size]
        return int(block), position % self.batch.block_size


def assert_same(step, tolerance):
    by_kernel, by_twin = step.run(write_kv), step.run(twin)
    for ours, theirs in zip(by_kernel, by_twin, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    keys, values, query, faults = by_twin
    for token in range(step.batch.num_real):
        block, place = step.slot(token)
        found = (query[token], keys[block, :, place], values[block, :, place])
        for ours, models in zip(found, step.heads_of(token), strict=True):
            torch.testing.assert_close(ours, models, rtol=tolerance, atol=tolerance)
    assert not faults.any()
    for storage in (keys, values):  # nothing else was written but the first slot of the null block
        assert int(storage[:, 0, :, 0].isfinite().sum()) == step.batch.num_real + 1
        assert (storage[-1, :, 0] == 0.0).all()
    assert (query[step.batch.num_real :] == 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rotary", "norms"), [(False, False), (True, False), (True, True), (False, True)])
def test_what_a_model_has(dtype, rotary, norms):
    step = Step(small_heads(4, 2, 16, dtype), rotary=rotary, norms=norms)
    assert_same(step, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(2, 1, 80), (2, 2, 96), (9, 3, 64), (16, 8, 128), (2, 1, 256)]
)
def test_head_shapes(num_heads, num_kv_heads, head_dim):
    assert_same(Step(small_heads(num_heads, num_kv_heads, head_dim)), 1e-5)


@pytest.mark.parametrize("block_size", [8, 32])
def test_block_sizes(block_size):
    assert_same(Step(small_heads(), block_size=block_size), 1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("head", "stored"), [(4, "keys"), (7, "values")])
@pytest.mark.parametrize("write", [write_kv, twin])
def test_what_is_not_finite_is_stored_as_0_and_marked(bad, head, stored, write):
    step = Step(small_heads(4, 2), rotary=False, norms=False)
    clean = step.run(write)
    step.qkv[1, head * 16 + 5] = bad
    keys, values, query, faults = step.run(write)
    assert faults.tolist() == [0, 1] + [0] * (step.num_tokens - 2)
    block, place = step.slot(1)
    found = {"keys": keys, "values": values}[stored][block, (head - 4) % 2, place]
    assert found[5] == 0.0
    found[5] = {"keys": clean[0], "values": clean[1]}[stored][block, (head - 4) % 2, place, 5]
    for ours, before in zip((keys, values, query), clean, strict=False):
        torch.testing.assert_close(ours, before, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("write", [write_kv, twin])
def test_a_key_that_overflows_when_rounded_is_marked(write):
    step = Step(small_heads(4, 2, dtype=torch.float16), rotary=False)
    step.norms = HeadNorms(step.norms.query_weight, torch.full((16,), 60000.0, dtype=torch.float16), 1e-6)
    keys, _, _, faults = step.run(write)
    assert faults[: step.batch.num_real].all()
    assert not torch.isinf(keys).any()
    assert not faults[step.batch.num_real :].any()


@pytest.mark.parametrize("write", [write_kv, twin])
def test_a_query_that_is_not_finite_is_the_business_of_its_logits(write):
    step = Step(small_heads(4, 2), rotary=False, norms=False)
    step.qkv[1, 3] = float("inf")
    assert not step.run(write)[3].any()


def test_blocks_beyond_two_to_the_31_numbers():
    step = Step(small_heads(2, 1, dtype=torch.float16), padding=0)
    keys, values, query, _ = step.run(write_kv)
    shift = 2**31 // (16 * 16) + 1000
    shape = (shift + len(keys), 1, 16, 16)
    large = [torch.from_numpy(np.zeros(int(np.prod(shape)), dtype=np.float16)).view(shape) for _ in range(2)]
    step.batch.state.table[:, BLOCK_TABLE:] += shift
    batch = step.batch
    write_kv.write_kv(
        step.qkv, step.rotary, step.norms, batch.buffers, batch.state, *large, step.query, step.num_tokens, 2
    )
    for ours, small in zip(large, (keys, values), strict=True):
        assert torch.equal(ours[shift:], small.nan_to_num(nan=0.0))
    assert torch.equal(step.query, query)
