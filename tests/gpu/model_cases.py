"""Cases of the kernels between two hidden states: products, embedding, keys and values, attention."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from engine.checkpoint.model_config import ModelConfig
from tests.gpu.cases import Case, Pair, rounding
from tests.gpu.projections import Layer, layers
from tests.gpu.scene import HeadShape, Span, attend_scene, make_scene
from tests.gpu.setting import Setting
from tests.gpu.shapes import LARGE, SMALL, shrunk
from tests.gpu.wiring import need

_TINY_HEADS = (HeadShape(num_heads=4, num_kv_heads=2, head_dim=16),)
_HEADS = (
    HeadShape(num_heads=9, num_kv_heads=3, head_dim=64),
    HeadShape(num_heads=16, num_kv_heads=8, head_dim=128),
    HeadShape(num_heads=32, num_kv_heads=8, head_dim=128),
    HeadShape(num_heads=12, num_kv_heads=12, head_dim=64),
    HeadShape(num_heads=14, num_kv_heads=2, head_dim=64),
)


def head_shapes(setting: Setting) -> Sequence[HeadShape]:
    """Return the heads to try: those of the known models, groups of 1 to 7."""
    return _TINY_HEADS if setting.rehearse else _HEADS


def projection_cases(setting: Setting) -> Iterator[Case]:
    """Yield every layer of every family, at numbers of rows around each change of kernel."""
    rows = (2, 40) if setting.rehearse else (1, 7, 32, 33, 64, 65, 200)
    models = {**SMALL, "8b": LARGE["8b"]}
    for model in ("llama", "gpt2") if setting.rehearse else models:
        config = shrunk(models[model]) if setting.rehearse else models[model]
        with_head = not (setting.rehearse and model == "gpt2")
        for layer in layers(config, dtype=setting.dtype, device=setting.device, with_head=with_head):
            tolerance = rounding(setting.dtype)
            yield Case(f"{model} {layer.name}", partial(_projection_pairs, layer, rows), tolerance)


def _projection_pairs(layer: Layer, rows: Sequence[int]) -> Iterator[Pair]:
    for num_rows in rows:
        x = layer.input(num_rows)
        yield layer.run(x), layer.run(x, module="twins.projection")


def embedding_cases(setting: Setting) -> Iterator[Case]:
    """Yield an embedding with and without learned positions."""
    for has_positions in (False, True):
        yield Case(f"positions {has_positions}", partial(_embedding_pairs, setting, has_positions), 0.0)


def _embedding_pairs(setting: Setting, has_positions: bool) -> Iterator[Pair]:
    device, hidden = setting.device, setting.number(24, 576, 576)
    table, shifts = (torch.randn(200, hidden, device=device).to(setting.dtype) for _ in range(2))
    token_ids, positions = (torch.arange(n, n - 10, -1, dtype=torch.int32, device=device) for n in (150, 60))
    outs = [torch.zeros(10, hidden, dtype=setting.dtype, device=device) for _ in range(2)]
    for module, out in zip(("embedding", "twins.embedding"), outs, strict=True):
        need(module).embed(token_ids, positions, table, shifts if has_positions else None, out, 10)
    yield outs[0], outs[1]


def write_kv_cases(setting: Setting) -> Iterator[Case]:
    """Yield writes with and without rotation and norms, with padding and a token that is not finite."""
    for heads in head_shapes(setting):
        for has_rotary, has_norms in ((True, False), (True, True), (False, False)):
            name = f"{heads} rotary {has_rotary} norms {has_norms}"
            pairs = partial(_write_kv_pairs, setting, heads, has_rotary, has_norms)
            yield Case(name, pairs, rounding(setting.dtype))


def _write_kv_pairs(setting: Setting, heads: HeadShape, has_rotary: bool, has_norms: bool) -> Iterator[Pair]:
    device, dtype, dim = setting.device, setting.dtype, heads.head_dim
    transforms = need("head_transform")
    spans = [(0, 1), (17, 3), (40, 1)]
    angles = torch.randn(64, dim, device=device)
    rotary = transforms.RotaryTables(cos=angles.cos(), signed_sin=angles.sin()) if has_rotary else None
    weights = [(1 + 0.1 * torch.randn(dim, device=device)).to(dtype) for _ in range(2)]
    norms = transforms.HeadNorms(*weights, 1e-6) if has_norms else None
    results = []
    for module in ("write_kv", "twins.write_kv"):
        scene = make_scene(spans, heads, dtype=dtype, device=device, tile_tokens=1, num_padding=2)
        num_tokens, width = scene.shape.num_tokens, (heads.num_heads + 2 * heads.num_kv_heads) * dim
        generator = torch.Generator(device).manual_seed(4)
        qkv = torch.randn(num_tokens, width, generator=generator, device=device).to(dtype)
        qkv[2, -3:] = float("nan")
        qkv[-1] = float("inf")  # padding: must leave no trace
        query = torch.zeros(num_tokens, heads.num_heads, dim, dtype=dtype, device=device)
        tensors = (scene.buffers, scene.state, scene.keys, scene.values, query)
        need(module).write_kv(qkv, rotary, norms, *tensors, num_tokens, heads.num_heads)
        real = slice(0, num_tokens - 2)
        results.append((scene.keys, scene.values, query[real], scene.buffers.faults))
    yield from zip(*results, strict=True)


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Yield decodes, prompts and both together, with padding behind."""
    spans: dict[str, tuple[list[Span], int]] = {
        "decode": ([(0, 1), (15, 1), (16, 1), (130, 1), (setting.number(40, 1500, 1500), 1)], 1),
        "prompts": ([(0, 33), (20, 17), (setting.number(5, 500, 500), 40)], 16),
        "both": ([(100, 1), (0, 20), (60, 5)], 8),
    }
    for heads in head_shapes(setting):
        for name, (lengths, tile_tokens) in spans.items():
            full_name = f"{name} {heads}"
            pairs = partial(_attention_pairs, setting, heads, lengths, tile_tokens)
            yield Case(full_name, pairs, rounding(setting.dtype))


def _attention_pairs(
    setting: Setting, heads: HeadShape, spans: Sequence[Span], tile_tokens: int
) -> Iterator[Pair]:
    scene = make_scene(
        spans, heads, dtype=setting.dtype, device=setting.device, tile_tokens=tile_tokens, num_padding=2
    )
    real = slice(0, scene.shape.num_tokens - 2)
    yield attend_scene(scene, heads)[real], attend_scene(scene, heads, module="twins.attention")[real]


def layers_of(setting: Setting, model: str, *, with_head: bool = True) -> Iterator[Layer]:
    """Yield the layers of a large model, or of its likeness in a rehearsal."""
    config: ModelConfig = shrunk(LARGE[model]) if setting.rehearse else LARGE[model]
    return layers(config, dtype=setting.dtype, device=setting.device, with_head=with_head)
