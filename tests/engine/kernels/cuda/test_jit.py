"""Every launch of an engine goes through Triton's JIT, as on a card, and serving compiles nothing (G7)."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_an_engine_is_specialised_and_compiled_before_it_serves():
    """Half of its matrices are blocks of GGUF; many rows of them are widened first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    module = "tests.engine.kernels.cuda.compile_engine"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", module, "90", "bfloat16", "1"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["later"] == []
    assert {"_dequantize", "_project_few_rows", "_project_many_rows", "attend_tiles"} < set(said["ready"])
