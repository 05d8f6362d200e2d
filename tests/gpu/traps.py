"""The traps on which other engines' CUDA paths broke, G1 to G9: each a check by its name, on this device.

    python -m tests.gpu.traps [--rehearse]

tests/engine/kernels/cuda/test_traps.py says which test covers each of them on a CPU.
"""

import sys
from collections.abc import Callable

import torch

from tests.gpu import engine_traps, kernel_traps
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part

_TRAPS: tuple[tuple[str, Callable[[Setting, Report], None]], ...] = (
    ("G1 offsets beyond 32 bits: keys and values", kernel_traps.blocks_at_the_top_of_a_pool),
    ("G1 offsets beyond 32 bits: rows", kernel_traps.rows_beyond_32_bits),
    ("G1 offsets beyond 32 bits: embeddings", kernel_traps.tokens_beyond_32_bits),
    ("G2 padding", kernel_traps.padding_reaches_nobody),
    ("G3 unwritten slots", kernel_traps.unwritten_slots_reach_nobody),
    ("G5 reductions and the number of tokens", kernel_traps.norms_of_many_rows),
    ("G4 run-ahead", engine_traps.run_ahead),
    ("G7 compiling while serving", engine_traps.nothing_is_compiled_while_serving),
    ("G8 a fault is reported where it happens", engine_traps.debug_flag),
    ("G9 cold and warm", engine_traps.cold_and_warm),
)
"""G6, a variant that does not fit this card, is what tests.gpu.compile shows."""


def traps(setting: Setting, report: Report) -> None:
    """Try each."""
    for name, trap in _TRAPS:
        if setting.is_late:
            report.late(name)
            continue
        with report.section(name):
            trap(setting, report)
        if not setting.rehearse:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(run_part("traps", traps))
