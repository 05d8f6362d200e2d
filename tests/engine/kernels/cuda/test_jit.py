"""Every launch of an engine goes through Triton's JIT, as on a card, and serving compiles nothing (G7)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("capability", "dtype", "has_blocks"), [(90, "bfloat16", 1), (80, "float16", 0)], ids=["blocks", "plain"]
)
def test_an_engine_is_specialised_and_compiled_before_it_serves(capability, dtype, has_blocks):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    module = "tests.engine.kernels.cuda.compile_engine"
    command = [sys.executable, "-W", "error::UserWarning", "-m", module]
    done = subprocess.run(
        [*command, str(capability), dtype, str(has_blocks)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["later"] == []
    assert len(said["ready"]) > 15
    assert any("dequantize" in name for name in said["ready"]) is bool(has_blocks)
