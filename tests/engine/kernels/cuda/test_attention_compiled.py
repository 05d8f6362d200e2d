"""Attention, embeddings and the write of keys and values, compiled for cards that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SHARED_BYTES = {80: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # that one program may have
MAX_SPILL_BYTES = 256  # of what way (b) has merged so far, between two splits: never in a loop over keys

COMPILE = r"""
import re, subprocess, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine.kernels.cuda import attention, embedding, write_kv
from engine.kernels.cuda.attention_plan import Heads
from engine.kernels.cuda.variants import compile_variant

capability, folder = int(sys.argv[1]), Path(sys.argv[2])
heads = [Heads(*map(int, shape.split("/")), torch.bfloat16) for shape in sys.argv[3].split(",")]
tile_tokens = [int(size) for size in sys.argv[4].split(",")]
windows = [None, 4096] if "window" in sys.argv else [None]

def code_of(variant):
    names = variant.kernel.arg_names
    compiled = triton.compile(
        ASTSource(
            variant.kernel,
            {name: variant.signature.get(name, "constexpr") for name in names},
            {(names.index(name),): value for name, value in variant.constants.items()},
            {(names.index(name),): [["tt.divisibility", 16]] for name in sorted(variant.divisible)},
        ),
        target=GPUTarget("cuda", capability, 32),
        options=dict(variant.options),
    )
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    said = subprocess.run([tool, "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    return [(int(at, 16), what) for at, what in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(.*?);", said)]

def spills_in_loops(code):
    loops = []
    for at, what in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", what)
        if jump and int(jump.group(1), 16) < at:
            loops.append((int(jump.group(1), 16), at))
    holds = lambda a, b: a != b and a[0] <= b[0] and b[1] <= a[1]
    inner = [a for a in loops if not any(holds(a, b) for b in loops)]
    bodies = [[what for at, what in code if first <= at <= last] for first, last in inner]
    bodies = [body for body in bodies if any("MMA" in what for what in body)]
    assert bodies, "no loop has products"
    return sum(bool(re.search(r"\b(LDL|STL)", what)) for body in bodies for what in body)

variants = list(embedding.variants(576, torch.bfloat16, has_positions=True))
for one in heads:
    variants += write_kv.variants(one, block_size=16, has_rotary=True, has_norms=True)
    variants += attention.variants(one, block_size=16, tile_tokens=tile_tokens, windows=windows)
for variant in variants:
    report = compile_variant(variant, capability)
    plan = variant.constants["plan"] if variant.kernel is attention.attend_tiles else None
    spills = spills_in_loops(code_of(variant)) if plan else 0
    rows = getattr(plan, "rows", 0)
    print("RESULT", rows, report.shared_bytes, report.spill_bytes, spills,
          report.num_wgmma, report.num_mma, plan.key_block * plan.head_block * 2 if plan else 0)
"""


def results(folder, capability, shapes, tile_tokens, *more):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_DEFAULT_FP_FUSION": "0"}
    arguments = [str(capability), str(folder), shapes, tile_tokens, *more]
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [
        [int(number) for number in line.split()[1:]]
        for line in re.findall(r"^RESULT.*$", ran.stdout, flags=re.MULTILINE)
    ]


@pytest.mark.parametrize(
    ("capability", "shapes", "tile_tokens", "more"),
    [
        (80, "9/3/64", "1,64", ()),
        (90, "16/8/128", "1,64", ("window",)),
        (100, "32/8/128", "1,64", ()),
        (120, "2/1/256", "1,64", ()),
    ],
)
def test_kernels_fit_every_card(tmp_path, capability, shapes, tile_tokens, more):
    found = results(tmp_path, capability, shapes, tile_tokens, *more)
    attention = [result for result in found if result[0]]
    assert {result[0] for result in attention} >= {16}
    for rows, shared, spilled, spilled_in_loops, num_wgmma, num_mma, key_bytes in found:
        assert shared <= SHARED_BYTES[capability]
        assert spilled <= (MAX_SPILL_BYTES if rows >= 64 else 32)
        assert spilled_in_loops == 0
        if rows:
            assert shared > 2 * key_bytes  # keys and values of a block: they are on their way asynchronously
            assert num_wgmma + num_mma > 0
        if rows >= 64 and capability in (90, 100):
            assert num_wgmma > 0
