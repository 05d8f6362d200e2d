"""The wheel and the source distribution: what is in them, how large they are, what they say and need."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from draftline_client import __version__

ROOT = Path(__file__).parents[2] / "clients" / "python"
BUILD = "import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both, built from a copy."""
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for
    source = tmp_path_factory.mktemp("source") / "python"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist"))
    out = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        command = [sys.executable, "-c", BUILD.format(kind=kind), str(out)]
        result = subprocess.run(command, cwd=source, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built / f"draftline_client-{__version__}-py3-none-any.whl") as found:
        yield found


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_bytes(wheel.read(f"draftline_client-{__version__}.dist-info/METADATA"))


def sources() -> set[str]:
    paths = (ROOT / "draftline_client").rglob("*")
    return {str(path.relative_to(ROOT)) for path in paths if path.suffix in {".py", ".typed"}}


def test_the_wheel_is_small_and_has_every_file(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).stat().st_size < 100_000
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == sources()
    assert "draftline_client/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_source_distribution_has_what_a_reader_needs(built: Path) -> None:
    name = f"draftline_client-{__version__}"
    with tarfile.open(built / f"{name}.tar.gz") as archive:
        files = {member.name.removeprefix(f"{name}/") for member in archive.getmembers() if member.isfile()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO"} <= files
    assert {file for file in files if file.startswith("draftline_client/")} == sources()


def test_what_the_wheel_says_and_needs(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("draftline-client", __version__)
    assert metadata.get_all("Requires-Dist") == ["httpx>=0.27"]
    assert (metadata["Requires-Python"], metadata["License-Expression"]) == (">=3.10", "Apache-2.0")
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert metadata.get_all("Project-URL") is None, "there is no host yet"
    classifiers = metadata.get_all("Classifier")
    assert classifiers is not None
    assert "Typing :: Typed" in classifiers
    assert not [line for line in classifiers if line.startswith("License")], "the expression says it"


def test_the_version_is_written_once() -> None:
    pattern = re.compile(rf'["\']{re.escape(__version__)}["\']')
    found = [path.name for path in ROOT.rglob("*.py") if pattern.search(path.read_text())]
    assert found == ["_version.py"]
    assert __version__ not in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_installed_wheel_needs_nothing_but_httpx(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """From the wheel itself, in a process that can see neither torch nor this checkout."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "absent = ('torch', 'numpy', 'pydantic', 'typing_extensions', 'engine', 'server');"
        "sys.modules.update(dict.fromkeys(absent));"
        "import draftline_client; print(draftline_client.__file__, draftline_client.__version__)"
    )
    wheel.extractall(tmp_path)
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.split() == [str(tmp_path / "draftline_client" / "__init__.py"), __version__]
