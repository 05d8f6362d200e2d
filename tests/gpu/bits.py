"""The five facts on which a row's bits do not depend on the batch, each a check of its own.

    python -m tests.gpu.bits [--only 135m|0.6b|8b] [--rehearse]

Should one break on another card or library, the engine must say so and fall back (numerics: tolerance). A
rehearsal adds in NumPy's order, which depends on the shape: it runs the same code and compares values only.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.interface.outputs import GenerationRequest
from tests.gpu import wiring
from tests.gpu.checkpoints import random_checkpoint
from tests.gpu.kernels import distance
from tests.gpu.model_cases import head_shapes, layers_of
from tests.gpu.report import Report
from tests.gpu.requests import run
from tests.gpu.scene import HeadShape, attend_scene, make_scene
from tests.gpu.setting import Setting, run_part
from tests.gpu.shapes import LARGE
from tests.gpu.speed import config_of
from tests.tiny import generation

_EDGES = (0, 1, 63, 64, 127, 128, 255, 256, 257, 511, 512, 513, 1023, 1024, 2047)
_TINY_EDGES = (0, 1, 15, 16, 30)
_ROWS = (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 255, 256, 257, 512, 1000)


def bits(setting: Setting, report: Report) -> None:
    """Check all five, for the three known shapes."""
    facts: tuple[Callable[[Setting, Report], None], ...] = (
        decode_equals_prompt,
        row_does_not_depend_on_the_tile,
        library_equals_triton,
        pieces_apart_equal_pieces_in_a_row,
        whole_step,
    )
    for fact in facts:
        if setting.is_late:
            report.late(fact.__name__)
            continue
        with report.section(fact.__name__):
            fact(setting, report)


def _note(setting: Setting, report: Report, name: str, found: Tensor, expected: Tensor) -> None:
    """Compare bits; in a rehearsal values."""
    differ = int((found != expected).sum())
    is_right = distance(found, expected) < 1e-4 if setting.rehearse else differ == 0
    report.check(name, is_right, f"{differ} of {expected.numel()} differ" if differ else "")


def row_does_not_depend_on_the_tile(setting: Setting, report: Report) -> None:
    """Fact 1: the first rows of every number of rows have the bits that they have among all (G5 too)."""
    rows = (1, 3, 33) if setting.rehearse else _ROWS
    for model in _models(setting):
        for layer in layers_of(setting, model, with_head=not setting.rehearse):
            if layer.name == "head":
                rows = tuple(number for number in rows if number <= 257)
            x = layer.input(rows[-1])
            expected = layer.run(x)
            found = torch.cat([layer.run(x[:number].contiguous()) for number in rows])
            wanted = torch.cat([expected[:number] for number in rows])
            _note(setting, report, f"1: {model} {layer.name}, {len(rows)} row counts", found, wanted)


def library_equals_triton(setting: Setting, report: Report) -> None:
    """Fact 2: cuBLASLt that may not cut K gives the bits of the kernels of our own."""
    blas = wiring.need("blas")
    if not setting.rehearse:
        blas.forbid_split_k()
    rows = (40,) if setting.rehearse else (33, 64, 100, 256, 1000, 2048)
    for model in _models(setting):
        for layer in layers_of(setting, model, with_head=False):
            pairs = [_by_library_and_by_us(blas, layer.projection.weight, layer.input(n)) for n in rows]
            found, expected = (torch.cat(side) for side in zip(*pairs, strict=True))
            _note(setting, report, f"2: {model} {layer.name}, library", found, expected)
        _engine_s_own_check(setting, report, model)


def _engine_s_own_check(setting: Setting, report: Report, model: str) -> None:
    """What the engine finds out when it starts, and so promises."""
    numerics = wiring.need("numerics")
    projections = [layer.projection for layer in layers_of(setting, model, with_head=not setting.rehearse)]
    max_rows = setting.number(34, 2048, 4096)
    workspace = wiring.need("projection_workspace").ProjectionWorkspace(max_rows, projections, setting.device)
    counts = (1, 34) if setting.rehearse else numerics.ROW_COUNTS
    found = numerics.check_numerics(projections, workspace, counts)
    by_library = sum(found.exact_library.values())
    detail = f"{by_library} of {len(projections)} layers by the library; {'; '.join(found.reasons)}"
    is_right = setting.rehearse or found.level == "bitwise"
    report.check(f"2: {model}, numerics are bitwise", is_right, detail)


def _by_library_and_by_us(blas: object, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a plain product by the library and by the kernel for many rows, without a cut of K."""
    outs = [x.new_empty(len(x), len(weight)) for _ in range(2)]
    blas.library_product(x, weight, outs[0])  # type: ignore[attr-defined]
    wiring.uncut_product(x, weight, outs[1])
    return outs[0], outs[1]


def pieces_apart_equal_pieces_in_a_row(setting: Setting, report: Report) -> None:
    """Fact 3: programs that sum a piece of K each, and one that walks all pieces, agree."""
    few, many = (2, 40) if setting.rehearse else (32, 64)
    for model in _models(setting):
        for layer in layers_of(setting, model, with_head=False):
            num_pieces = layer.projection.cut.num_pieces
            if num_pieces == 1 and not setting.rehearse:
                continue
            x = layer.input(many)
            name = f"3: {model} {layer.name}, {num_pieces} pieces"
            _note(setting, report, name, layer.run(x[:few].contiguous()), layer.run(x)[:few])


def decode_equals_prompt(setting: Setting, report: Report) -> None:
    """Fact 4: a token's attention has the same bits alone, in a prompt's tiles, and among other requests."""
    edges = _TINY_EDGES if setting.rehearse else _EDGES
    for heads in _heads(setting):
        length = edges[-1] + 1
        whole = _attend(setting, heads, [(0, length)], tile_tokens=16 if setting.rehearse else 64)
        decodes = _attend(setting, heads, [(edge, 1) for edge in edges], tile_tokens=1)
        _note(setting, report, f"4: decode is prompt, {heads}", decodes, whole[list(edges)])
        chunks = [(0, edges[2]), (edges[2], length - edges[2])]
        parts = [_attend(setting, heads, [chunk], tile_tokens=16) for chunk in chunks]
        _note(setting, report, f"4: chunks are the whole, {heads}", torch.cat(parts), whole)


def _attend(
    setting: Setting, heads: HeadShape, spans: Sequence[tuple[int, int]], *, tile_tokens: int
) -> Tensor:
    scene = make_scene(spans, heads, dtype=setting.dtype, device=setting.device, tile_tokens=tile_tokens)
    return attend_scene(scene, heads)


def whole_step(setting: Setting, report: Report) -> None:
    """Fact 5: the engine's 64 sampled tokens of a request are the same at batch 1, 8, 64 and 256."""
    batches = (1, 3) if setting.rehearse else (1, 8, 64, 256)
    for model in _models(setting):
        config = config_of(setting, model)
        checkpoint = random_checkpoint(config, device=setting.device)
        kv_memory = setting.number(2**22, 8 * 2**30, 8 * 2**30)
        engine_config = setting.engine_config(
            max_num_seqs=batches[-1],
            max_model_len=128,
            kv_cache_memory=kv_memory,
            enable_prefix_caching=False,
        )
        engine = setting.build_engine(checkpoint, engine_config).engine
        answers = [run(engine, _sampled(setting, batch))[0].token_ids for batch in batches]
        engine.close()
        for batch, answer in zip(batches[1:], answers[1:], strict=True):
            same = sum(one == other for one, other in zip(answer, answers[0], strict=True))
            detail = f"{same} of {len(answer)} tokens equal"
            report.check(f"5: {model}, request 0 of {batch}", answer == answers[0], detail)


def _sampled(setting: Setting, batch: int) -> list[GenerationRequest]:
    max_tokens = setting.number(4, 64, 64)
    prompts = [[7 + number, 3, 9 + number % 5] for number in range(batch)]
    return [
        generation(prompt, temperature=0.7, seed=number, max_tokens=max_tokens, ignore_eos=True)
        for number, prompt in enumerate(prompts)
    ]


def _heads(setting: Setting) -> Sequence[HeadShape]:
    """Return all heads that are tried, or those of the one model."""
    if setting.rehearse or not setting.only:
        return head_shapes(setting)
    config = LARGE[setting.only]
    return [HeadShape(num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim)]


def _models(setting: Setting) -> list[str]:
    if setting.only:
        return [setting.only]
    return ["135m"] if setting.rehearse else list(LARGE)


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(run_part("bits", bits))
