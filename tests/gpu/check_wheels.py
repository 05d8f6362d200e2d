"""Would these wheels and the machine's own packages satisfy pyproject.toml and each other?

python tests/gpu/check_wheels.py .whl

The machine's own packages are those that torch and transformers bring, and a few more, named here. Needs
nothing but pip.
"""

import email.parser
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import tomllib
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

_THERE = frozenset(
    (
        *(
            "torch",
            "triton",
            "transformers",
            "numpy",
            "safetensors",
            "tokenizers",
            "huggingface-hub",
            "jinja2",
        ),
        *("markupsafe", "regex", "tqdm", "requests", "pyyaml", "httpx", "httpcore", "h11", "anyio", "idna"),
        *("certifi", "sniffio", "click", "rich", "markdown-it-py", "mdurl", "pygments", "tiktoken"),
        *("prometheus-client", "packaging"),
    )
)
_ENVIRONMENT = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "extra": "",
}
_PLATFORM = {"platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
_PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def requirements(wheels: list[Path]) -> Iterator[tuple[str, Requirement]]:
    """Yield who needs what, here and now."""
    for line in tomllib.loads(_PROJECT.read_text())["project"]["dependencies"]:
        yield "pyproject.toml", Requirement(line)
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            name = next(
                name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
            )
            metadata = email.parser.BytesParser().parsebytes(archive.read(name), headersonly=True)
        for line in metadata.get_all("Requires-Dist", []):
            yield path.name, Requirement(line)


def missing(folder: Path) -> Iterator[str]:
    """Yield a line for each requirement that nothing satisfies."""
    wheels = sorted(folder.glob("*.whl"))
    versions = {name: version for name, version, *_ in (parse_wheel_filename(path.name) for path in wheels)}
    if len(versions) < len(wheels):
        yield "two versions of a package: pip would stop"
    for who, need in requirements(wheels):
        name = canonicalize_name(need.name)
        if need.marker is not None and not need.marker.evaluate({**_ENVIRONMENT, **_PLATFORM}):
            continue
        if name in versions and not need.specifier.contains(versions[name], prereleases=True):
            yield f"{who} needs {need}, {versions[name]} is there"
        if name not in versions and name not in _THERE:
            yield f"{who} needs {need}"


if __name__ == "__main__":
    lines = list(missing(Path(sys.argv[1])))
    print("\n".join(lines) or "nothing is missing")
    sys.exit(bool(lines))
