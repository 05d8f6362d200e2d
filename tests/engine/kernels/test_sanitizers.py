"""The kernel tests once more, over a library built with AddressSanitizer and UBSan: `make sanitize`.

Without the longest of them, which runs each row through the same code many times.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "engine/kernels/cpu/src").glob("*.cpp"))
COMPILE = (
    "g++ -std=c++17 -O1 -g -ffp-contract=off -fno-math-errno -Wno-psabi -fPIC -shared -pthread "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)
RUN_OVER = """
import sys, pathlib, pytest
from engine.kernels.cpu import library
library.library_path = lambda: pathlib.Path(sys.argv[1])
sys.exit(pytest.main([*sys.argv[2:], "-x", "-k", "not any_chunk", "-p", "no:cacheprovider",
                      "-W", "ignore", "-o", "timeout=3000"]))
"""


@pytest.mark.sanitizer
@pytest.mark.timeout(3600)
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(tmp_path):
    built = tmp_path / "_kernels.so"
    subprocess.run(
        [*COMPILE.split(), *map(str, SOURCES), "-o", str(built)],
        check=True,
    )
    runtimes = [
        subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
        for name in ("asan", "ubsan")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtime.stdout.strip() for runtime in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    tests = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
    subprocess.run(
        [sys.executable, "-c", RUN_OVER, str(built), *tests], cwd=ROOT, env=environment, check=True
    )
