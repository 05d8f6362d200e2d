"""The card, its software, and the two ceilings that all speeds are set against.

python -m tests.gpu.environment [--rehearse] [--folder FOLDER]
"""

import importlib.util
import shutil
import subprocess
import sys

import torch

from tests.gpu.ceilings import Ceilings
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part
from tests.gpu.timing import median_seconds


def environment(setting: Setting, report: Report) -> None:
    """Say what this machine is, then measure it."""
    report.check("python", sys.version_info >= (3, 10), sys.version.split()[0])
    for name in ("torch", "triton", "numpy", "transformers", "llguidance", "gguf"):
        print(name, _version(name), flush=True)
    if not setting.rehearse:
        _describe_card(report)
    ceilings = measure_ceilings(setting)
    report.figure("copy, read and write", ceilings.bytes_per_second / 1e9, "GB/s")
    report.figure("product, 16-bit", ceilings.flops_per_second / 1e12, "TFLOP/s")
    ceilings.save(setting.folder)


def measure_ceilings(setting: Setting) -> Ceilings:
    """Time a copy much larger than any cache, and a square product."""
    size, side = setting.number(2**20, 2**29, 2**29), setting.number(64, 8192, 8192)
    source = torch.ones(size, dtype=torch.bfloat16, device=setting.device)
    target = torch.empty_like(source)
    copying = median_seconds(lambda: target.copy_(source), setting.device)
    left, right = (torch.randn(side, side, device=setting.device).to(torch.bfloat16) for _ in range(2))
    multiplying = median_seconds(lambda: left @ right, setting.device)
    return Ceilings(
        bytes_per_second=2 * source.numel() * source.element_size() / copying,
        flops_per_second=2 * side**3 / multiplying,
    )


def _describe_card(report: Report) -> None:
    properties = torch.cuda.get_device_properties(0)
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.sm",
        "--format=csv,noheader",
    ]
    if shutil.which(command[0]):
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        print(asked.stdout.strip() or asked.stderr.strip(), flush=True)
    capability = torch.cuda.get_device_capability()
    detail = f"{properties.name}, {properties.multi_processor_count} SMs, CUDA {torch.version.cuda}"
    report.check("compute capability", capability >= (8, 0), f"{capability}, {detail}")
    report.figure("memory", properties.total_memory / 2**30, "GiB")


def _version(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "is not there"
    return str(getattr(importlib.import_module(name), "__version__", "is there"))


if __name__ == "__main__":
    sys.exit(run_part("environment", environment))
