"""IdleMemory: memory of a peak goes back to the system once nothing runs."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 5.0
_MIN_BYTES = 64 << 20  # less is not worth mapping it again for the next prompt


class IdleMemory:
    """Has glibc give back what is free when a process has grown and was idle at two looks in a row.

    Between the steps of a busy engine freed memory is kept (keep_freed_memory), so one request of megabytes
    would otherwise hold them for ever.
    """

    def __init__(self) -> None:
        self._lowest = resident_bytes()
        self._was_idle = False

    def look(self, *, is_idle: bool) -> None:
        """Look at the process; takes milliseconds where there is much to give back."""
        if is_idle and self._was_idle and resident_bytes() > self._lowest + _MIN_BYTES:
            give_back_freed_memory()
            self._lowest = resident_bytes()
        self._was_idle = is_idle

    def keep_looking(self, is_idle: Callable[[], bool]) -> None:
        """Look every few seconds, on a thread that ends with the process."""

        def run() -> None:
            while True:
                time.sleep(LOOK_SECONDS)
                self.look(is_idle=is_idle())

        threading.Thread(target=run, name="idle-memory", daemon=True).start()


def resident_bytes() -> int:
    """Return the memory that this process has in RAM; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


def give_back_freed_memory() -> None:
    """Return what malloc keeps to the system; does nothing where the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
