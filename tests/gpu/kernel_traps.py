"""Traps that a kernel alone can fall into: G1, G2, G3, G5."""

import torch
from torch import Tensor

from tests.gpu.kernels import distance
from tests.gpu.model_cases import head_shapes, layers_of
from tests.gpu.projections import Layer
from tests.gpu.report import Report
from tests.gpu.scene import BLOCK_SIZE, Scene, attend_scene, make_scene
from tests.gpu.setting import Setting
from tests.gpu.wiring import need

_LIMIT = 2**31  # elements


def _same(report: Report, name: str, found: Tensor, expected: Tensor, *, detail: str = "") -> None:
    """Note whether two tensors have the same bits, and numbers only."""
    differ = int((found != expected).sum())
    is_finite = bool(expected.isfinite().all())
    report.check(name, differ == 0 and is_finite, detail + (f"{differ} differ" if differ else ""))


def blocks_at_the_top_of_a_pool(setting: Setting, report: Report) -> None:
    """G1: a step over the last blocks of a layer of more than 2^31 elements gives the bits of a small pool.

    What an offset of 32 bits would read lies in the middle of the pool or before it, and is zero there.
    """
    heads = head_shapes(setting)[0]
    for tile_tokens, spans in ((1, [(70, 1), (33, 1)]), (8, [(0, 40), (30, 9)])):
        scene = make_scene(spans, heads, dtype=setting.dtype, device=setting.device, tile_tokens=tile_tokens)
        expected = attend_scene(scene, heads)
        high = _at_the_top(scene, setting.number(20_000, _LIMIT + 2**27, _LIMIT + 2**27))
        found = attend_scene(high, heads)
        detail = f"{high.keys.numel()} elements; "
        _same(report, f"G1 attention, tiles of {tile_tokens}", found, expected, detail=detail)
        _write_there(setting, report, high, tile_tokens)
        del high


def _at_the_top(scene: Scene, num_elements: int) -> Scene:
    """Return the scene in a pool of so many elements, its blocks the last ones."""
    used = scene.keys.shape[0]
    num_blocks = max(used, -(-num_elements // scene.keys[0].numel()))
    shift = num_blocks - used
    pools = [stored.new_zeros(num_blocks, *stored.shape[1:]) for stored in (scene.keys, scene.values)]
    for pool, stored in zip(pools, (scene.keys, scene.values), strict=True):
        pool[shift:] = stored
    scene.state.block_tables.add_(shift)
    return scene.copy_with(keys=pools[0], values=pools[1])


def _write_there(setting: Setting, report: Report, scene: Scene, tile_tokens: int) -> None:
    """Write ones, and find as many as were written in the blocks that they belong to."""
    num_kv_heads, head_dim = scene.keys.shape[1], scene.keys.shape[3]
    num_tokens, num_heads = scene.shape.num_tokens, scene.query.shape[1]
    qkv = scene.query.new_full((num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), 3.0)
    query = torch.zeros_like(scene.query)
    tensors = (scene.buffers, scene.state, scene.keys, scene.values, query)
    need("write_kv").write_kv(qkv, None, None, *tensors, num_tokens, num_heads)
    place = scene.buffers.positions[:num_tokens].long()
    request = scene.buffers.token_requests[:num_tokens].long()
    block = scene.state.block_tables[request, place // BLOCK_SIZE].long()
    for name, stored in (("keys", scene.keys), ("values", scene.values)):
        written = stored[block, :, place % BLOCK_SIZE]
        report.check(f"G1 write_kv, {name}, tiles of {tile_tokens}", bool((written == 3.0).all()))


def rows_beyond_32_bits(setting: Setting, report: Report) -> None:
    """G1: the last rows of an output of more than 2^31 elements are those of the same rows alone.

    A chunk of 16,384 tokens whose every token is scored has as many logits at a vocabulary of 131,072.
    """
    out_rows = setting.number(500, 131_072, 131_072)
    num_rows = setting.number(40, _LIMIT // out_rows + 200, _LIMIT // out_rows + 200)
    layer = _plain_layer(setting, out_rows=out_rows, depth=64)
    x = layer.input(num_rows)
    found, expected = layer.run(x)[-8:].clone(), layer.run(x[-8:].contiguous())
    detail = f"{num_rows * out_rows} elements"
    if setting.rehearse:
        report.check("G1 rows of a product", distance(found, expected) < 1e-5, detail)
    else:
        _same(report, "G1 rows of a product", found, expected, detail=f"{detail}; ")


def _plain_layer(setting: Setting, *, out_rows: int, depth: int) -> Layer:
    weight = torch.randn(out_rows, depth, device=setting.device).to(setting.dtype)
    projection = need("projection_layer").Projection(
        weight=weight, bias=None, norm=None, activation=None, is_gated=False, out_dtype=torch.float32
    )
    return Layer("head", projection, has_residual=False)


def tokens_beyond_32_bits(setting: Setting, report: Report) -> None:
    """G1: the embedding of the last token of a table of more than 2^31 elements."""
    hidden = setting.number(32, 16_384, 16_384)
    vocab_size = setting.number(100, _LIMIT // hidden + 100, _LIMIT // hidden + 100)
    table = torch.zeros(vocab_size, hidden, dtype=setting.dtype, device=setting.device)
    table[-1] = torch.arange(hidden, device=setting.device) % 7 + 1
    token_ids = torch.tensor([vocab_size - 1, 0], dtype=torch.int32, device=setting.device)
    out = torch.zeros(2, hidden, dtype=setting.dtype, device=setting.device)
    need("embedding").embed(token_ids, torch.zeros_like(token_ids), table, None, out, 2)
    _same(report, "G1 embedding of the last token", out[0], table[-1], detail=f"{table.numel()} elements; ")


def padding_reaches_nobody(setting: Setting, report: Report) -> None:
    """G2: padding with NaN in its queries, keys and values changes no bit of a real row, and writes zeros."""
    for heads in head_shapes(setting):
        name = str(heads)
        spans = [(20, 1), (7, 1), (130, 1)]
        place = {"dtype": setting.dtype, "device": setting.device, "tile_tokens": 1}
        expected = attend_scene(make_scene(spans, heads, **place), heads)
        padded = make_scene(spans, heads, num_padding=5, **place)
        padded.query[-5:] = float("nan")
        padded.keys[-1], padded.values[-1] = float("nan"), float("nan")
        _same(report, f"G2 attention beside padding, {name}", attend_scene(padded, heads)[:3], expected)
        _write_padding(report, padded, name)


def _write_padding(report: Report, scene: Scene, name: str) -> None:
    """Padding writes zeros to the null block and nowhere else, and no fault of a real token."""
    num_kv_heads, head_dim = scene.keys.shape[1], scene.keys.shape[3]
    num_tokens, num_heads = scene.shape.num_tokens, scene.query.shape[1]
    place, request = (
        numbers[:3].long() for numbers in (scene.buffers.positions, scene.buffers.token_requests)
    )
    block = scene.state.block_tables[request, place // BLOCK_SIZE].long()
    expected = scene.keys[:-1].clone()
    expected[block, :, place % BLOCK_SIZE] = 1.0
    for garbage in (float("nan"), 5.0):
        qkv = scene.query.new_full((num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), garbage)
        qkv[:3] = 1.0
        tensors = (scene.buffers, scene.state, scene.keys, scene.values, torch.zeros_like(scene.query))
        need("write_kv").write_kv(qkv, None, None, *tensors, num_tokens, num_heads)
        full_name = f"padding of {garbage}, {name}"
        _same(report, f"G2 blocks beside {full_name}", scene.keys[:-1], expected)
        slots = torch.stack([scene.keys[-1][:, 0], scene.values[-1][:, 0]])
        report.check(f"G2 the null block is rewritten with zeros, {full_name}", bool((slots == 0).all()))
        report.check(f"G2 no fault of a real token, {full_name}", not scene.buffers.faults[:3].any().item())


def unwritten_slots_reach_nobody(setting: Setting, report: Report) -> None:
    """G3: what lies behind a request's last position, and in blocks that are not its own, is never used."""
    for heads in head_shapes(setting):
        for tile_tokens, spans in ((1, [(3, 1), (130, 1)]), (16, [(0, 21), (50, 33)])):
            place = {"dtype": setting.dtype, "device": setting.device, "tile_tokens": tile_tokens}
            clean = make_scene(spans, heads, **place)
            expected = attend_scene(clean, heads)
            poisoned = make_scene(spans, heads, **place)
            for stored in (poisoned.keys, poisoned.values):
                _poison(poisoned, stored)
            name = f"G3 {heads}, tiles of {tile_tokens}"
            _same(report, name, attend_scene(poisoned, heads), expected)


def _poison(scene: Scene, stored: Tensor) -> None:
    """Write NaN wherever no request has a position."""
    is_written = torch.zeros(stored.shape[0], BLOCK_SIZE, dtype=torch.bool, device=stored.device)
    for number, (first, count) in enumerate(scene.spans):
        place = torch.arange(first + count, device=stored.device)
        is_written[scene.state.block_tables[number].long()[place // BLOCK_SIZE], place % BLOCK_SIZE] = True
    stored.transpose(1, 2)[~is_written] = float("nan")


def norms_of_many_rows(setting: Setting, report: Report) -> None:
    """G5: a row's norm is summed in the same order in a step of one token and of any number of tokens."""
    counts = (1, 40) if setting.rehearse else (1, 2, 32, 33, 256, 257, 1024, 4096)
    for model in ["135m"] if setting.rehearse else ["135m", "0.6b", "8b"]:
        layer = next(layers_of(setting, model, with_head=False))
        x = layer.input(counts[-1])
        firsts = [layer.run(x[:count].contiguous())[0] for count in counts]
        for count, first in zip(counts[1:], firsts[1:], strict=True):
            name = f"G5 {model}, a row among {count}"
            if setting.rehearse:
                report.check(name, distance(first, firsts[0]) < 1e-4)
            else:
                _same(report, name, first, firsts[0])
