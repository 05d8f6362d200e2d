"""Scene: a step's buffers, block tables, keys and values, put together for the kernels alone."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from engine.kernels.cuda.request_state import RequestState
from engine.kernels.cuda.step_buffers import StepBuffers, StepShape
from tests.gpu.wiring import need

BLOCK_SIZE = 16
Span = tuple[int, int]
"""First position of a request's tokens in this step, and how many they are."""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Heads of a layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        """Name it."""
        return f"{self.num_heads}/{self.num_kv_heads}/{self.head_dim}"


@dataclass(kw_only=True)
class Scene:
    """A step over some requests; their keys and values are random up to each request's last position."""

    state: RequestState
    buffers: StepBuffers
    shape: StepShape
    keys: Tensor
    values: Tensor
    query: Tensor  # [num_tokens, num_heads, head_dim]
    spans: Sequence[Span]
    max_positions: int

    def copy_with(self, *, keys: Tensor, values: Tensor) -> "Scene":
        """Return the same step over other keys and values."""
        return Scene(**{**self.__dict__, "keys": keys, "values": values})


def make_scene(
    spans: Sequence[Span],
    heads: HeadShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tile_tokens: int,
    num_padding: int = 0,
    seed: int = 0,
) -> Scene:
    """Lay out requests with block tables in random order; `num_padding` tokens of the null request follow.

    Each token has a query of its own that depends on its request's number, its position and `seed` alone: a
    request of another scene with the same history gets the same.
    """
    max_positions = max(first + count for first, count in spans)
    max_blocks = -(-max_positions // BLOCK_SIZE)
    num_blocks = max_blocks * len(spans)
    state = RequestState(max_requests=len(spans), max_blocks=max_blocks, null_block=num_blocks, device=device)
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
    table = order.to(torch.int32).view(len(spans), max_blocks).to(device)
    state.block_tables[: len(spans)] = table
    shape = _shape(spans, tile_tokens, num_padding)
    buffers = make_buffers(shape, device)
    _fill(buffers, spans, tile_tokens, num_padding, state.null_request)
    size = (num_blocks + 1, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
    scene = Scene(
        state=state,
        buffers=buffers,
        shape=shape,
        keys=torch.zeros(size, dtype=dtype, device=device),
        values=torch.zeros(size, dtype=dtype, device=device),
        query=_queries(spans, heads, num_padding, seed).to(device, dtype),
        spans=spans,
        max_positions=max_positions,
    )
    _fill_histories(scene, heads, seed)
    return scene


def make_buffers(shape: StepShape, device: torch.device) -> StepBuffers:
    """Return buffers just large enough for a shape."""
    sizes = {
        "max_tokens": shape.num_tokens,
        "max_tiles": shape.num_tiles,
        "max_rows": max(1, shape.num_rows),
        "max_updates": 16,
    }
    known = inspect.signature(StepBuffers).parameters
    return StepBuffers(**{name: size for name, size in sizes.items() if name in known}, device=device)


def _shape(spans: Sequence[Span], tile_tokens: int, num_padding: int) -> StepShape:
    num_tiles = sum(-(-count // tile_tokens) for _, count in spans) + num_padding
    num_tokens = sum(count for _, count in spans) + num_padding
    return StepShape(num_tokens, num_tiles, tile_tokens, len(spans))


def _fill(
    buffers: StepBuffers, spans: Sequence[Span], tile_tokens: int, num_padding: int, null_request: int
) -> None:
    positions, requests, starts, lengths = list[int](), list[int](), list[int](), list[int]()
    for number, (first, count) in enumerate(spans):
        for begin in range(0, count, tile_tokens):
            starts.append(len(positions) + begin)
            lengths.append(min(tile_tokens, count - begin))
        positions += range(first, first + count)
        requests += [number] * count
    for _ in range(num_padding):
        starts.append(len(positions))
        lengths.append(1)
        positions.append(0)
        requests.append(null_request)
    for target, numbers in (
        (buffers.positions, positions),
        (buffers.token_requests, requests),
        (buffers.tile_starts, starts),
        (buffers.tile_lengths, lengths),
    ):
        target[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)


def _noise(shape: Sequence[int], *seeds: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash((7, *seeds)) & (2**62 - 1))
    return torch.randn(*shape, generator=generator)


def _queries(spans: Sequence[Span], heads: HeadShape, num_padding: int, seed: int) -> Tensor:
    shape = (heads.num_heads, heads.head_dim)
    longest = max(first + count for first, count in spans)
    parts = [_noise((longest, *shape), seed, 1)[first : first + count] for first, count in spans]
    return torch.cat([*parts, torch.zeros(num_padding, *shape)])


def _fill_histories(scene: Scene, heads: HeadShape, seed: int) -> None:
    """Give every request the same history, as far as it goes: what differs is where it lies."""
    size = (scene.max_positions, heads.num_kv_heads, heads.head_dim)
    for stored, kind in ((scene.keys, 2), (scene.values, 3)):
        history = _noise(size, seed, kind).to(stored.device, stored.dtype)
        for number, (first, count) in enumerate(scene.spans):
            place = torch.arange(first + count, device=stored.device)
            block = scene.state.block_tables[number].long()[place // BLOCK_SIZE]
            stored[block, :, place % BLOCK_SIZE] = history[: first + count]


def attend_scene(scene: Scene, heads: HeadShape, *, module: str = "attention", **options: object) -> Tensor:
    """Run attention over a scene and return its output [num_tokens, num_heads * head_dim]."""
    launcher, plan, workspaces = need(module), need("attention_plan"), need("attention_workspace")
    out = torch.zeros(
        len(scene.query), heads.num_heads * heads.head_dim, dtype=scene.query.dtype, device=scene.query.device
    )
    workspace = workspaces.AttentionWorkspace(
        attention_heads(plan, heads, scene.query.dtype),
        [scene.shape],
        max_positions=scene.max_positions,
        device=scene.query.device,
        **options,
    )
    launcher.attend(
        scene.query,
        scene.keys,
        scene.values,
        scene.buffers,
        scene.state,
        out,
        scene.shape,
        workspace,
        scale=heads.head_dim**-0.5,
    )
    return out


def attention_heads(plan: ModuleType, heads: HeadShape, dtype: torch.dtype) -> object:
    """Return what the kernels call heads."""
    return plan.Heads(heads.num_heads, heads.num_kv_heads, heads.head_dim, dtype)
