"""Every sampling kernel compiles for each generation of cards, within their registers and shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SHARED_BYTES = 99 * 1024  # what the smallest of them gives a block


@pytest.mark.timeout(600)
def test_variants_compile_without_spills():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_sampling.py")
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len({(name, target) for name, target, *_ in lines}) == 3 * 9
    for name, target, shared, registers, spilled in lines:
        assert int(spilled) == 0, (name, target, registers)
        assert int(shared) <= SHARED_BYTES, (name, target)
