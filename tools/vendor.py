"""Fetch the libraries that the pages use from npm, with `python -m tools.vendor`.

They lie in server/static/vendor, so that no page needs a foreign host and no build needs npm. To update one,
change its version here, run this, and look at the page. VENDORED.json says what lies there; a test compares.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent / "server" / "static" / "vendor"
INDEX = ROOT / "VENDORED.json"


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package of npm, and the files of it that are served."""

    name: str
    version: str
    licence: str
    files: tuple[str, ...]


LIBRARIES = (
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


def fetch(library: Library, folder: Path) -> dict[str, object]:
    """Put the library's files into a folder of its name; return what the index says of it."""
    target = ROOT / library.name
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
            (target / name).write_bytes(content)
            hashes[name] = hashlib.sha256(content).hexdigest()
    return {"version": library.version, "licence": library.licence, "sha256": hashes}


def main() -> None:
    """Fetch every library and write the index."""
    index = {}
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            index[library.name] = fetch(library, Path(folder))
    INDEX.write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
