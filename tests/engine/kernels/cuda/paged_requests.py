"""Requests whose keys and values lie in shuffled blocks, as a step's buffers describe them."""

import torch

from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.request_state import BLOCK_TABLE, RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape


class PagedRequests:
    """`pieces`: (position of the first query token, number of query tokens) of each request.

    Slots that no request has written, other columns of the table and the queries of padding hold NaN or lies.
    """

    def __init__(
        self,
        heads,
        pieces,
        *,
        tile_tokens=1,
        block_size=16,
        padding=1,
        seed=0,
        max_positions=None,
        empty=float("nan"),
    ):
        self.heads, self.pieces, self.block_size = heads, pieces, block_size
        self.random = torch.Generator().manual_seed(seed)
        longest = max(start + count for start, count in pieces)
        self.max_positions = max(max_positions or 0, longest)
        self._write_pool(empty)
        self._describe_step(tile_tokens, padding)
        num_tokens = self.shape.num_tokens
        self.query = self.numbers(num_tokens, heads.num_heads, heads.head_dim)
        self.query[num_tokens - padding :] = float("nan")
        self.out = torch.full((num_tokens, heads.num_heads * heads.head_dim), 7.0).to(heads.dtype)

    def numbers(self, *shape):
        return torch.randn(*shape, generator=self.random).to(self.heads.dtype)

    def _write_pool(self, empty):
        heads, block_size = self.heads, self.block_size
        max_blocks = -(-self.max_positions // block_size)
        num_blocks = 3 + sum(-(-(start + count) // block_size) for start, count in self.pieces)
        max_requests = len(self.pieces) + 1
        self.state = RequestState(
            max_requests=max_requests,
            max_blocks=max_blocks,
            null_block=num_blocks,
            device=torch.device("cpu"),
        )
        shape = (num_blocks + 1, heads.num_kv_heads, block_size, heads.head_dim)
        self.keys, self.values = (torch.full(shape, empty, dtype=heads.dtype) for _ in range(2))
        self.keys[num_blocks] = self.values[num_blocks] = 0.0
        self.requests = torch.randperm(max_requests, generator=self.random)[: len(self.pieces)].tolist()
        free = torch.randperm(num_blocks, generator=self.random).tolist()
        self.dense = []  # keys, values [positions, num_kv_heads, head_dim] of each piece's request
        for request, (start, count) in zip(self.requests, self.pieces, strict=True):
            dense = [self.numbers(start + count, heads.num_kv_heads, heads.head_dim) for _ in range(2)]
            self.dense.append(dense)
            for begin in range(0, start + count, block_size):
                block = free.pop()
                self.state.table[request, BLOCK_TABLE + begin // block_size] = block
                for storage, new in zip((self.keys, self.values), dense, strict=True):
                    some = new[begin : begin + block_size]
                    storage[block, :, : len(some)] = some.transpose(0, 1)

    def _describe_step(self, tile_tokens, padding):
        tokens, tiles = [], []
        for request, (start, count) in zip(self.requests, self.pieces, strict=True):
            begins = range(0, count, tile_tokens)
            tiles += [(len(tokens) + begin, min(tile_tokens, count - begin)) for begin in begins]
            tokens += [(start + number, request) for number in range(count)]
        for _ in range(padding):
            tiles.append((len(tokens), 1))
            tokens.append((0, self.state.null_request))
        self.buffers = StepBuffers(
            max_tokens=len(tokens),
            max_tiles=len(tiles),
            max_rows=1,
            max_updates=0,
            device=torch.device("cpu"),
        )
        columns = torch.tensor(tokens, dtype=torch.int32).t()
        self.buffers.positions[:], self.buffers.token_requests[:] = columns[0], columns[1]
        columns = torch.tensor(tiles, dtype=torch.int32).t()
        self.buffers.tile_starts[:], self.buffers.tile_lengths[:] = columns[0], columns[1]
        self.num_real = len(tokens) - padding
        self.shape = StepShape(len(tokens), len(tiles), tile_tokens, 1)

    def expected(self, *, scale, window=None):
        """Softmax over all positions at once, in float64: [num_real, num_heads * head_dim]."""
        rows, token = [], 0
        for (start, count), (keys, values) in zip(self.pieces, self.dense, strict=True):
            query = self.query[token : token + count].double()
            token += count
            keys, values = (x.double().repeat_interleave(self.heads.group, dim=1) for x in (keys, values))
            scores = torch.einsum("thd,phd->thp", query, keys) * scale
            behind = (start + torch.arange(count))[:, None] - torch.arange(start + count)[None, :]
            is_seen = (behind >= 0) & (behind < (window or 1 << 30))
            weights = scores.masked_fill(~is_seen[:, None, :], float("-inf")).softmax(dim=-1)
            rows.append(torch.einsum("thp,phd->thd", weights, values).flatten(1))
        return torch.cat(rows)


def small_heads(num_heads=2, num_kv_heads=1, head_dim=16, dtype=torch.float32):
    return Heads(num_heads, num_kv_heads, head_dim, dtype)
