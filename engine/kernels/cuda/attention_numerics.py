"""Whether a token's attention has the same bits in every kind of step on this card, found out at start-up."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.kernels.cuda.attention_plan import SPLIT, Heads
from engine.kernels.cuda.attention_workspace import AttentionWorkspace
from engine.kernels.cuda.kernels import Kernel
from engine.kernels.cuda.request_state import BLOCK_TABLE, RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape

_NUM_TOKENS = 80  # of which the first lie in one split of the keys, and the last in the next
_FIRST_POSITION = SPLIT - 40
_TILE_TOKENS = (4, 16, 64)  # of steps that verify drafts and of prompts
_SEED = 0


class AttentionCheck:
    """A request with random keys and values, asked by the same queries in tiles of different widths."""

    def __init__(self, heads: Heads, *, block_size: int, device: torch.device) -> None:
        self._heads, self._device = heads, device
        max_positions = _FIRST_POSITION + _NUM_TOKENS
        num_blocks = -(-max_positions // block_size)
        generator = torch.Generator(device).manual_seed(_SEED)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(heads.dtype)

        storage = num_blocks + 1, heads.num_kv_heads, block_size, heads.head_dim
        self._keys, self._values = random(*storage), random(*storage)
        self._query = random(_NUM_TOKENS, heads.num_heads, heads.head_dim)
        self._state = RequestState(
            max_requests=1, max_blocks=num_blocks, null_block=num_blocks, device=device
        )
        order = torch.randperm(num_blocks, generator=generator, device=device)
        self._state.table[0, BLOCK_TABLE : BLOCK_TABLE + num_blocks] = order.int()
        self._buffers = StepBuffers(max_tokens=_NUM_TOKENS, max_tiles=_NUM_TOKENS, max_rows=1, device=device)
        self._buffers.positions.copy_(torch.arange(_FIRST_POSITION, max_positions))
        self._max_positions = max_positions

    def differing(self, attend: Kernel) -> Iterator[int]:
        """Yield the widths of tiles in which some token's attention is not what it is when it decodes."""
        decoded = self._attend(attend, 1)
        for width in _TILE_TOKENS:
            if not torch.equal(self._attend(attend, width), decoded):
                yield width

    def _attend(self, attend: Kernel, tile_tokens: int) -> Tensor:
        starts = range(0, _NUM_TOKENS, tile_tokens)
        lengths = [min(tile_tokens, _NUM_TOKENS - start) for start in starts]
        self._buffers.tile_starts[: len(starts)] = _numbers(starts, self._device)
        self._buffers.tile_lengths[: len(starts)] = _numbers(lengths, self._device)
        shape = StepShape(_NUM_TOKENS, len(starts), tile_tokens, 0)
        workspace = AttentionWorkspace(
            self._heads, [shape], max_positions=self._max_positions, device=self._device
        )
        out = torch.zeros_like(self._query).flatten(1)
        attend(
            self._query,
            self._keys,
            self._values,
            self._buffers,
            self._state,
            out,
            shape,
            workspace,
            scale=self._heads.head_dim**-0.5,
        )
        return out


def check_attention(attend: Kernel, heads: Heads, *, block_size: int, device: torch.device) -> list[str]:
    """Return a reason for each width of tiles that breaks the promise of equal bits; waits for the device."""
    widths = AttentionCheck(heads, block_size=block_size, device=device).differing(attend)
    return [f"attention of {heads.head_dim}: other bits in tiles of {width} tokens" for width in widths]


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32, device=device)
