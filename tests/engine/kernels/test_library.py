"""The border between Python and the C++ library: what is mirrored by hand, and what may not cross it."""

import ctypes
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from engine.interface.errors import ConfigError
from engine.kernels.cpu import library as border
from engine.kernels.cpu.library import KernelContext, check_layout, load_library

NEEDS_MEMORY_LIMIT = pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1"
    if Path("/proc/sys/vm/overcommit_memory").exists()
    else True,
    reason="this system promises any amount of memory",
)


def test_a_struct_that_grew_on_one_side_is_found_at_load(monkeypatch):
    sizes = border._STRUCT_BYTES
    for number in range(len(sizes)):
        changed = (*sizes[:number], sizes[number] + 8, *sizes[number + 1 :])
        monkeypatch.setattr(border, "_STRUCT_BYTES", changed)
        with pytest.raises(ConfigError, match="another version of draftline; install it again"):
            check_layout(load_library(), Path("old.so"))


def test_another_version_is_found_before_any_function_is_looked_for(monkeypatch):
    class Old:
        def draftline_abi_version(self):
            return border.ABI_VERSION - 1

    with pytest.raises(ConfigError, match=r"old\.so is of another version"):
        check_layout(Old(), Path("old.so"))


@NEEDS_MEMORY_LIMIT
def test_memory_that_is_not_there_is_a_python_error():
    context = KernelContext(num_threads=200)
    with pytest.raises(MemoryError, match="ran out of memory"):
        context.library.draftline_sample(context.handle, None, 0, 0, 2**31 - 1, None, None, None)
    tokens, faults = (ctypes.c_int64 * 1)(-1), (ctypes.c_uint8 * 1)()
    logits = (ctypes.c_float * 100)(*range(100))
    sampling = struct.pack("=fffiII", 1.0, 1.0, 0.0, 1, 0, 0)  # top-k works in the memory
    context.library.draftline_sample(context.handle, logits, 100, 1, 100, sampling, tokens, faults)
    assert tokens[0] == 99, "it goes on"


def test_threads_that_cannot_start_are_a_python_error(monkeypatch):
    context = KernelContext(num_threads=1)
    monkeypatch.setattr(border, "MAX_THREADS", 10**6)
    with pytest.raises(MemoryError, match="could not start 1000 threads"):
        KernelContext(num_threads=1000)
    assert context.handle


def test_threads_that_the_system_refuses_are_a_python_error():
    """Those that were started before end; without that the process would."""
    code = """
import resource
from engine.kernels.cpu.library import KernelContext, load_library
load_library()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**26,) * 2)  # room for a few stacks
try:
    KernelContext(num_threads=200)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the CPU kernels could not start 200 threads\n"), done.stderr
