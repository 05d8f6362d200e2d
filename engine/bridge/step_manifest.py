"""StepManifest: which requests are in the step that runs, in memory that outlives its process."""

import mmap
import struct
from collections.abc import Sequence

MAX_REQUESTS = 4096
NUM_BYTES = 4 + 8 * MAX_REQUESTS

_COUNT = struct.Struct("<I")


class StepManifest:
    """Written by an engine process around every step, read by its server when it is gone."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, NUM_BYTES)
        self._numbers: Sequence[int] = ()  # in the memory

    def begin(self, numbers: Sequence[int]) -> None:
        """Name the requests of a step that begins; who names the same ones again passes the same object."""
        count = min(len(numbers), MAX_REQUESTS)
        if numbers is not self._numbers:
            struct.pack_into(f"<{count}Q", self._memory, 4, *numbers[:count])
            self._numbers = numbers
        _COUNT.pack_into(self._memory, 0, count)

    def end(self) -> None:
        """Say that no step runs."""
        _COUNT.pack_into(self._memory, 0, 0)

    def read(self) -> tuple[int, ...]:
        """Return the numbers of the requests in the step that runs, or ran last of all."""
        [count] = _COUNT.unpack_from(self._memory, 0)
        return struct.unpack_from(f"<{min(count, MAX_REQUESTS)}Q", self._memory, 4)

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
