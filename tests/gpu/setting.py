"""Setting: how a part of the GPU checks runs: on a card or rehearsed on a CPU, whole or quick, how long."""

import argparse
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from engine.checkpoint.checkpoint import Checkpoint
from engine.interface.config import EngineConfig
from engine.kernels.cuda.twins.torch_kernels import torch_kernels
from engine.loading.cuda_backend import DEFAULT_STEPS_AHEAD, CudaBackend
from engine.loading.loader import LoadedEngine, build_engine
from engine.loading.machine import choose_dtype
from tests.cuda_stand_in import HostDevice
from tests.gpu.report import Report

_SPARE = 0.85  # of a part's time limit may pass before a section is begun


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a part was told on its command line."""

    rehearse: bool  # on a CPU, with tiny shapes and stand-ins
    quick: bool
    only: str | None  # the model, for a part that runs as several processes
    folder: Path  # where the parts' JSON files lie
    last_start: float  # of a section, in time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of kernels: Triton's interpreter multiplies bfloat16 wrongly, so a rehearsal takes float32."""
        return torch.float32 if self.rehearse else torch.bfloat16

    @property
    def is_late(self) -> bool:
        """True once nothing long should be begun."""
        return time.monotonic() > self.last_start

    def number(self, rehearsed: int, quick: int, whole: int) -> int:
        """Return the number for this run."""
        return rehearsed if self.rehearse else quick if self.quick else whole

    def engine_config(self, **settings: object) -> EngineConfig:
        """Return a configuration for this device."""
        place: dict[str, object] = (
            {"device": "cpu", "kernels": "torch", "dtype": "float32"} if self.rehearse else {"device": "cuda"}
        )
        return EngineConfig(**{**place, **settings})  # type: ignore[arg-type]

    def build_engine(
        self, checkpoint: Checkpoint, config: EngineConfig, draft: Checkpoint | None = None
    ) -> LoadedEngine:
        """Build an engine; a rehearsal's runs the CUDA executor over the kernels' twins in torch."""
        backend = self._stand_in(config) if self.rehearse else None
        return build_engine(checkpoint, config, draft, backend=backend)

    def _stand_in(self, config: EngineConfig) -> CudaBackend:
        device = HostDevice()
        return CudaBackend(
            device,
            choose_dtype(config.dtype, device.device),
            device.wrap(torch_kernels()),
            steps_ahead=DEFAULT_STEPS_AHEAD if config.steps_ahead is None else config.steps_ahead,
            is_captured=not config.enforce_eager,
            is_checked=config.debug_kernels,
        )


def has_settings(settings: object) -> bool:
    """Tell whether EngineConfig knows all these names: what it does not know yet is not tried."""
    return isinstance(settings, dict) and settings.keys() <= {field.name for field in fields(EngineConfig)}


def run_part(name: str, part: Callable[[Setting, Report], None]) -> int:
    """Read the command line, run a part, and return the exit status: 1 if something in it failed."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.gpu.{name}")
    parser.add_argument("--rehearse", action="store_true", default="REHEARSE" in os.environ)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="one model of those that the part knows")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/draftline-gpu"))
    parser.add_argument("--seconds", type=float, default=600.0, help="time limit that the part is under")
    arguments = parser.parse_args()
    setting = Setting(
        rehearse=arguments.rehearse,
        quick=arguments.quick,
        only=arguments.only,
        folder=arguments.folder,
        last_start=time.monotonic() + _SPARE * arguments.seconds,
    )
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
    full_name = name if arguments.only is None else f"{name}-{arguments.only}"
    report = Report(full_name, arguments.folder)
    logging.getLogger("engine").addHandler(_FailedSteps(report))
    with report.section(full_name):
        part(setting, report)
    return report.close()


class _FailedSteps(logging.Handler):
    """Reports what the engine logs as an error: it tries the requests of a step that failed again."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._report.error("a step failed", error or RuntimeError(record.getMessage()))
