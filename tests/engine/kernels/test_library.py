"""The border between Python and the C++ library: what is mirrored by hand, and what may not cross it."""

import ctypes
from pathlib import Path

import pytest

from engine.errors import ConfigError
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
    tokens = (ctypes.c_int64 * 0)()
    context.library.draftline_sample(context.handle, None, 0, 0, 100, None, tokens, None)  # it goes on


def test_threads_that_cannot_start_are_a_python_error(monkeypatch):
    context = KernelContext(num_threads=1)
    monkeypatch.setattr(border, "MAX_THREADS", 10**6)
    with pytest.raises(MemoryError, match="could not start 1000 threads"):
        KernelContext(num_threads=1000)
    assert context.handle
