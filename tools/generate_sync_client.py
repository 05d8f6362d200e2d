"""Write draftline_client/_sync from draftline_client/_async: the same code without waiting.

    python tools/generate_sync_client.py

The asynchronous client is written by hand; a test fails while the other is not what this makes of it.
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "clients" / "python" / "draftline_client"

# Whole pieces first: what is said or done otherwise without an event loop.
PIECES = (
    ("; `_sync` is generated from it by tools/generate_sync_client.py", ""),
    ("an asynchronous connection pool", "a synchronous connection pool"),
    ("asynchronous client", "synchronous client"),
    ("asynchronous client", "synchronous client"),
    ("among the tasks of one event loop", "among threads"),
    ("Another task may close it.", "One thread may use it at a time."),
    (
        "                for chunk in reader.feed(data):\n                    yield chunk\n",
        "                yield from reader.feed(data)\n",
    ),
    ("import asyncio\n", "import time\n"),
    ("asyncio.sleep", "time.sleep"),
)
PATTERNS = (
    (r"AsyncGenerator\[([^\]]+)\]", r"Generator[\1, None]"),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"import (.*)\bAwaitable, ", r"import \1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\ba(?=close\b|iter_bytes\b)", ""),
    (r"\banext\b", "next"),
    (r"__a(?=enter__|exit__|iter__|next__)", "__"),
    (r"\b_async\b", "_sync"),
)
HEADER = "# Generated from {source} by tools/generate_sync_client.py: change that file, not this one.\n"


def to_sync(source: str) -> str:
    """Return the synchronous twin of a module of `_async`, not formatted."""
    for old, new in PIECES:
        source = source.replace(old, new)
    for pattern, replacement in PATTERNS:
        source = re.sub(pattern, replacement, source)
    return source


def generate(path: Path) -> str:
    """Return the text of the synchronous twin of `path`, a file of `_async`."""
    text = HEADER.format(source=f"_async/{path.name}") + to_sync(path.read_text(encoding="utf-8"))
    twin = PACKAGE / "_sync" / path.name
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, f"--stdin-filename={twin}", "-"]
        text = subprocess.run(ruff, input=text, text=True, capture_output=True, check=True).stdout  # noqa: S603 - our own command
    return text


def main() -> None:
    """Write every file of `_sync`."""
    for path in sorted((PACKAGE / "_async").glob("*.py")):
        (PACKAGE / "_sync" / path.name).write_text(generate(path), encoding="utf-8")


if __name__ == "__main__":
    main()
