"""The engine's speed on random checkpoints of known shapes, each figure beside what the card allows.

    python -m tests.gpu.speed --only 135m|0.6b|8b|pair|8b-q4 [--quick] [--rehearse]

`pair`: the 8B shape with a draft model of the 135M shape. `8b-q4`: its weights in Q4_0 blocks.
"""

import sys
import time
from dataclasses import replace

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.model_config import ModelConfig
from engine.interface.errors import ConfigError
from engine.loading.loader import LoadedEngine, build_engine
from tests.gpu import wiring
from tests.gpu.ceilings import Ceilings, Work, decode_work, load_ceilings, prefill_work
from tests.gpu.checkpoints import random_checkpoint
from tests.gpu.environment import measure_ceilings
from tests.gpu.measure import median_decode, mixed_load, prefill_seconds, run_load
from tests.gpu.quantised import quantised_checkpoint
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part
from tests.gpu.shapes import LARGE, shrunk
from tests.gpu.speculation_speed import draft_model_speed, scripted_speed

NAMES = (*LARGE, "pair", "8b-q4")
_KV_MEMORY = {"135m": 12 * 2**30, "0.6b": 40 * 2**30, "8b": 30 * 2**30}
_Q4_BYTES = 18 / 32  # of a weight in Q4_0


def speed(setting: Setting, report: Report) -> None:
    """Measure one model, or all of them one after the other."""
    for name in [setting.only] if setting.only else NAMES:
        with report.section(name):
            loaded, config = _load(setting, report, name)
            if loaded is None:
                continue
            ceilings = load_ceilings(setting.folder) or measure_ceilings(setting)
            counter = wiring.count_compiles()
            with counter:
                _measure(Measurement(setting, report, loaded, config, ceilings), name)
            report.check("nothing was compiled after ready", counter.count == 0, counter.detail)
            loaded.engine.close()


def _load(setting: Setting, report: Report, name: str) -> tuple[LoadedEngine | None, ModelConfig]:
    shape = "8b" if name.startswith(("8b", "pair")) else name
    config = shrunk(LARGE[shape]) if setting.rehearse else LARGE[shape]
    draft = None
    if name == "pair":
        small = shrunk(LARGE["135m"]) if setting.rehearse else LARGE["135m"]
        small = replace(small, vocab_size=config.vocab_size)
        draft = random_checkpoint(small, device=setting.device)
    checkpoint = random_checkpoint(config, device=setting.device)
    if name == "8b-q4":
        checkpoint = quantised_checkpoint(config)
    started = time.monotonic()
    try:
        loaded = build_engine(checkpoint, _engine_config(setting, shape, name), draft)
    except ConfigError as error:
        if name != "8b-q4":
            raise
        report.waiting("4-bit weights", str(error))
        return None, config
    seconds = time.monotonic() - started
    report.figure("loading, compiling, capturing", seconds, "s", detail=f"kernels {loaded.info.kernels}")
    return loaded, config


def _engine_config(setting: Setting, shape: str, name: str) -> object:
    settings: dict[str, object] = {
        "dtype": "auto" if name == "8b-q4" else "bfloat16",
        "max_num_seqs": setting.number(16, 256, 256),
        "max_model_len": setting.number(256, 4096, 4096),
        "max_num_batched_tokens": setting.number(256, 8192, 8192),
        "kv_cache_memory": setting.number(2**24, _KV_MEMORY[shape], _KV_MEMORY[shape]),
    }
    return setting.engine_config(**settings)


if __name__ == "__main__":
    sys.exit(run_part("speed", speed))
