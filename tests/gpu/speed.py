"""The engine's speed on random checkpoints of known shapes, each figure beside what the card allows.

    python -m tests.gpu.speed --only 135m|0.6b|8b|pair|8b-q4 [--quick] [--rehearse]

`pair`: the 8B shape with a draft model of the 135M shape. `8b-q4`: its weights in Q4_0 blocks.
"""

import sys
import time
from dataclasses import replace

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.model_config import ModelConfig
from engine.interface.config import EngineConfig
from engine.loading.loader import LoadedEngine
from tests.gpu import wiring
from tests.gpu.ceilings import load_ceilings, matrix_parameters
from tests.gpu.checkpoints import random_checkpoint
from tests.gpu.environment import measure_ceilings
from tests.gpu.quantised import quantised_checkpoint
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part
from tests.gpu.shapes import LARGE, shrunk
from tests.gpu.speed_sections import SECTIONS, Measurement
from tests.gpu.wiring import NotThereError

_KV_MEMORY = {"135m": 12 * 2**30, "0.6b": 40 * 2**30, "8b": 30 * 2**30}
_Q4_BYTES, _BF16_BYTES = 18 / 32, 2.0  # of a weight
_MOST_Q4_BYTES = 1.0  # for a layer's weight, where blocks are kept: embedding and head are in it


def speed(setting: Setting, report: Report) -> None:
    """Measure one model, or all of them one after the other."""
    for name in [setting.only] if setting.only else SECTIONS:
        with report.section(name):
            if name == "8b-q4" and wiring.kernel_module(wiring.QUANTISED) is None:
                report.waiting(name, f"there is no engine/kernels/cuda/{wiring.QUANTISED}.py")
                continue
            _measure(setting, report, name)


def _measure(setting: Setting, report: Report, name: str) -> None:
    """Load a model, then run its sections; whatever is compiled meanwhile should have been before."""
    config = config_of(setting, name)
    loaded = _load(setting, report, name, config)
    measurement = Measurement(
        setting=setting,
        report=report,
        engine=loaded.engine,
        config=config,
        ceilings=load_ceilings(setting.folder) or measure_ceilings(setting),
        weight_bytes=_Q4_BYTES if name == "8b-q4" else _BF16_BYTES,
    )
    with wiring.count_compiles() as compiled:
        for section in SECTIONS[name]:
            title = section.__name__.strip("_")
            if setting.is_late:
                report.late(f"{name}: {title}")
                continue
            with report.section(f"{name}: {title}"):
                section(measurement)
    report.check(f"{name}: nothing compiled after ready (G7)", compiled.count == 0, compiled.detail)
    loaded.engine.close()


def config_of(setting: Setting, name: str) -> ModelConfig:
    """Return the shape of one of the models."""
    config = LARGE["8b" if name in ("pair", "8b-q4") else name]
    return shrunk(config) if setting.rehearse else config


def _load(setting: Setting, report: Report, name: str, config: ModelConfig) -> LoadedEngine:
    started = time.monotonic()
    if name == "8b-q4":
        checkpoint = quantised_checkpoint(config)
    else:
        checkpoint = random_checkpoint(config, device=setting.device)
    loaded = setting.build_engine(checkpoint, speed_config(setting, name), _draft(setting, name, config))
    seconds = time.monotonic() - started
    detail = f"kernels {loaded.info.kernels}, {loaded.info.weight_bytes / 1e9:.2f} GB of weights"
    report.figure(f"{name}: from nothing to ready", seconds, "s", detail=detail)
    if name == "8b-q4" and loaded.info.weight_bytes > _MOST_Q4_BYTES * matrix_parameters(config):
        raise NotThereError("the engine does not keep the blocks as they are")
    return loaded


def _draft(setting: Setting, name: str, config: ModelConfig) -> Checkpoint | None:
    if name != "pair":
        return None
    small = replace(config_of(setting, "135m"), vocab_size=config.vocab_size)
    return random_checkpoint(small, device=setting.device, name="draft")


def speed_config(setting: Setting, name: str, *, kv_cache_memory: int | None = None) -> EngineConfig:
    """Return a server's configuration for many streams; what it says decides which kernels there are."""
    memory = kv_cache_memory or _KV_MEMORY["8b" if name in ("pair", "8b-q4") else name]
    return setting.engine_config(
        dtype="float32" if setting.rehearse else "auto" if name == "8b-q4" else "bfloat16",
        max_num_seqs=setting.number(16, 256, 256),
        max_model_len=setting.number(256, 4096, 4096),
        max_num_batched_tokens=setting.number(256, 8192, 8192),
        kv_cache_memory=setting.number(2**24, memory, memory),
    )


if __name__ == "__main__":
    sys.exit(run_part("speed", speed))
