"""Start each large shape with one layer: every kernel is compiled on this card, and cached for the speeds.

    python -m tests.gpu.compile --only 135m|0.6b|8b

Kernels do not depend on the number of layers. A variant that does not fit this card fails here (G6).
"""

import sys
import time
from dataclasses import replace

from engine.loading.offline import random_requests, run_requests
from tests.gpu import wiring
from tests.gpu.checkpoints import random_checkpoint
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part
from tests.gpu.shapes import LARGE
from tests.gpu.speed import config_of, speed_config


def compile_all(setting: Setting, report: Report) -> None:
    """Build, and run a prompt and a few steps."""
    for name in [setting.only] if setting.only else LARGE:
        config = replace(config_of(setting, name), num_layers=1)
        started = time.monotonic()
        with wiring.count_compiles() as compiled:
            checkpoint = random_checkpoint(config, device=setting.device)
            engine = setting.build_engine(
                checkpoint, speed_config(setting, name, kv_cache_memory=2**30)
            ).engine
        seconds = time.monotonic() - started
        report.figure(f"{name}: one layer, from nothing to ready", seconds, "s", detail=compiled.detail)
        with wiring.count_compiles() as late:
            run_requests(
                engine,
                random_requests(config.vocab_size, count=3, num_prompt_tokens=40, num_tokens=4, seed=0),
            )
        report.check(
            f"{name}: every kernel fits this card, and is there when ready (G6, G7)", late.count == 0
        )
        engine.close()


if __name__ == "__main__":
    sys.exit(run_part("compile", compile_all))
