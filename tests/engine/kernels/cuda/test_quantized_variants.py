"""The kernels compile for cards that are not here, and to the instructions that their layout was made for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[4]
_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a block


@pytest.mark.parametrize(
    ("tensor_format", "capability", "num_rows"),
    [("Q4_0", 80, 1), ("Q4_0", 90, 64), ("Q4_0", 100, 64), ("Q8_0", 90, 16), ("Q4_K", 90, 1)],
)
def test_ahead_of_time(tensor_format: str, capability: int, num_rows: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = [tensor_format, str(capability), str(num_rows)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.engine.kernels.cuda.compile_quantized", *arguments],
        capture_output=True,
        check=False,
        cwd=_ROOT,
        env=environment,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    products = [line for line in lines if line[0].startswith("_project")]
    assert len(products) == 1
    for _, report, _, _ in lines:
        assert report["spill_bytes"] == 0
        assert report["shared_bytes"] <= _SHARED_BYTES[capability]
    for _, report, widths, num_wide_copies in products:
        assert report["num_mma"] + report["num_wgmma"] > 0
        if num_rows <= 32:
            assert widths == ["2"]  # K in groups of 16 in ascending order, as in a product of plain weights
        assert (
            num_wide_copies or num_rows <= 32
        )  # tiles of 32 rows and 16 columns are less than 16 bytes a thread
