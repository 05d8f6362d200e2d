"""Every form in which the server compiles projections, for cards that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.cuda.kernel_launch import KernelLaunch, distinct_variants
from engine.kernels.cuda.projection import plan, row_buckets, variants
from engine.kernels.cuda.projection_layer import ProjectionUse
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from tests.engine.kernels.cuda.projection_cases import CPU, random_projection, random_rows

ROOT = Path(__file__).parents[4]
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
HALF = 2  # bytes of an element
FEW_SPILLS = 128  # bytes of a thread: the assembler trades some for another block on a multiprocessor


def reports(capability, dtype, model, max_rows, dependent):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.engine.kernels.cuda.compile_projections",
            str(capability),
            dtype,
            model,
            str(max_rows),
            str(dependent),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def stages(report):
    """How many steps of the loop lie in shared memory at once, of the tiles that go through it."""
    step = report["STEP"] * HALF
    weights = report["COLUMNS"] * (2 if report.get("IS_GATED") else 1) * step
    return report["shared_bytes"] / (weights + report["ROWS"] * step)


@pytest.mark.parametrize(
    ("capability", "dtype", "model", "max_rows", "dependent"),
    [
        (80, "bfloat16", "135m", 512, 0),
        (90, "bfloat16", "135m", 512, 0),
        (90, "float16", "8b", 33, 1),
        (90, "bfloat16", "gpt2", 33, 0),
        (90, "float32", "odd", 33, 0),
        (100, "bfloat16", "135m", 512, 0),
    ],
)
def test_every_variant_compiles_fits_and_is_pipelined(capability, dtype, model, max_rows, dependent):
    found = reports(capability, dtype, model, max_rows, dependent)
    assert {report["kernel"] for report in found} >= {
        "_project_few_rows",
        "_multiply_many_rows",
        "_normalise_rows",
    }
    for report in found:
        assert report["shared_bytes"] <= SHARED_LIMIT[capability], report
        assert report["spill_bytes"] <= FEW_SPILLS, report
        if "STEP" in report and dtype != "float32" and model != "odd":
            assert stages(report) > 2.5, report
            units = report["num_wgmma"] if capability >= 90 and report["ROWS"] >= 64 else report["num_mma"]
            assert units > 0, report


def test_the_variants_of_every_number_of_rows_are_among_those_compiled():
    """A kernel compiled while serving would hold everybody up: no other choice hides between buckets."""
    projections = [
        random_projection(40, 576, norm="rms", gated=True),
        random_projection(4100, 64),
        random_projection(72, 100, torch.float16, norm="layer"),
    ]
    for projection in projections:
        workspace = ProjectionWorkspace(600, [projection], CPU)
        compiled = {str(v) for v in variants([ProjectionUse(projection, True)], workspace)}
        for num_rows in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 255, 257, 450, 599, 600):
            x = random_rows(num_rows, projection.depth)
            out = torch.empty(num_rows, projection.num_columns, dtype=projection.out_dtype)
            for library in (None, lambda *tensors: None):
                steps = plan(projection, x, out, workspace, residual=out, library=library)
                launches = [step for step in steps if isinstance(step, KernelLaunch)]
                assert {str(v) for v in distinct_variants(launches)} <= compiled


def test_buckets_hold_every_power_of_two_and_the_last_number():
    assert row_buckets(1) == [1]
    assert row_buckets(40) == [1, 2, 4, 8, 16, 32, 40]
    assert row_buckets(64) == [1, 2, 4, 8, 16, 32, 64]


def test_integers_of_one_are_constants_and_large_ones_wide():
    x = torch.empty(4, dtype=torch.float16)
    arguments = {"x": x, "absent": None, "one": 1, "wide": 1 << 33, "odd": 7, "rows": 1, "eps": 0.5}
    launch = KernelLaunch(None, (1,), arguments, {"C": 2}, {}, unspecialised=frozenset({"rows"}))
    variant = launch.variant()
    assert variant.constants == {"absent": None, "one": 1, "C": 2}
    assert variant.signature == {"x": "*fp16", "wide": "i64", "odd": "i32", "rows": "i32", "eps": "fp32"}
    assert variant.divisible >= {"wide"}
    assert not variant.divisible & {"odd", "rows", "eps"}
