"""Fetch the libraries that the pages and their tests use from npm, with `python -m tools.vendor`.

They lie in server/static/vendor and tests/browser/vendor, so that no page needs a foreign host and no build
needs npm. To update one, change its version here, run this, and look at the pages. VENDORED.json in each
folder says what lies there; a test compares.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).parent.parent
ROOT = _REPOSITORY / "server" / "static" / "vendor"
TEST_ROOT = _REPOSITORY / "tests" / "browser" / "vendor"
INDEX = "VENDORED.json"


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package of npm, and the files of it that are served."""

    name: str
    version: str
    licence: str
    files: tuple[str, ...]  # kept under the last part of their names


LIBRARIES = (
    Library(
        name="htm", version="3.1.1", licence="Apache-2.0", files=("preact/standalone.module.js", "LICENSE")
    ),
    Library(name="preact", version="10.5.15", licence="MIT", files=("LICENSE",)),  # is in htm's file
    Library(name="marked", version="18.2.1", licence="MIT", files=("lib/marked.esm.js", "LICENSE")),
    Library(
        name="dompurify",
        version="3.5.0",
        licence="MPL-2.0 OR Apache-2.0",
        files=("dist/purify.es.mjs", "LICENSE"),
    ),
    Library(
        name="uplot",
        version="1.6.32",
        licence="MIT",
        files=("dist/uPlot.esm.js", "dist/uPlot.min.css", "LICENSE"),
    ),
    Library(
        name="swagger-ui-dist",
        version="5.35.0",
        licence="Apache-2.0",
        files=(
            "swagger-ui-bundle.js",
            "swagger-ui-bundle.js.LICENSE.txt",
            "swagger-ui.css",
            "LICENSE",
            "NOTICE",
        ),
    ),
)


TEST_LIBRARIES = (
    Library(
        name="axe-core",
        version="4.14.1",
        licence="MPL-2.0",
        files=("axe.min.js", "LICENSE", "LICENSE-3RD-PARTY.txt"),
    ),
)


def fetch(library: Library, root: Path, folder: Path) -> dict[str, object]:
    """Put the library's files into a folder of its name; return what the index says of it."""
    target = root / library.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    spec = f"{library.name}@{library.version}"
    subprocess.run(["npm", "pack", spec, "--pack-destination", folder], check=True, capture_output=True)  # noqa: S603, S607
    [archive] = folder.glob("*.tgz")
    hashes = {}
    with tarfile.open(archive) as tar:
        for name in library.files:
            member = tar.extractfile(f"package/{name}")
            assert member is not None, f"{spec} has no file {name}"
            content = member.read()
            (target / Path(name).name).write_bytes(content)
            hashes[Path(name).name] = hashlib.sha256(content).hexdigest()
    return {"version": library.version, "licence": library.licence, "sha256": hashes}


def main() -> None:
    """Fetch every library and write the indexes."""
    for root, libraries in ((ROOT, LIBRARIES), (TEST_ROOT, TEST_LIBRARIES)):
        index = {}
        for library in libraries:
            with tempfile.TemporaryDirectory() as folder:
                index[library.name] = fetch(library, root, Path(folder))
        (root / INDEX).write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
