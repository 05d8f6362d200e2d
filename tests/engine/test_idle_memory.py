"""Memory of a peak is kept between steps and goes back when nothing runs."""

import subprocess
import sys

SCRIPT = """
import torch
from engine.loading.idle_memory import IdleMemory, resident_bytes
from engine.loading.machine import keep_freed_memory

keep_freed_memory()
memory, mebibyte = IdleMemory(), 1 << 20
before = resident_bytes()
peak = [torch.ones(mebibyte, dtype=torch.uint8) for _ in range(300)]
pin = torch.ones(mebibyte, dtype=torch.uint8)  # above the freed ones: the heap's end cannot just move down
del peak
sizes = []
for is_idle in (True, False, True, True, True):
    memory.look(is_idle=is_idle)
    sizes.append((resident_bytes() - before) // mebibyte)
print(*sizes)
"""


def test_a_peak_goes_back_after_two_idle_looks():
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    sizes = [int(size) for size in output.split()]
    assert all(size > 250 for size in sizes[:3]), "it is kept while there is work now and then"
    assert all(size < 50 for size in sizes[3:])
