"""Where and when a figure was taken: goes into every result."""

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, object]:
    """Date, machine and commit, for the JSON line of a benchmark."""
    import torch

    from engine.loading.machine import cpu_name

    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip()
