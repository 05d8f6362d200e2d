"""The parts' findings in one table and one JSON line.

    python -m tests.gpu.summary FOLDER [--rehearse]

Exit status 1 if a correctness part failed, ended early or said nothing; in a rehearsal if any part did.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

Part = dict[str, object]

_SPEED = ("speed", "http")  # parts whose failure makes no answer wrong


def read_parts(folder: Path) -> list[Part]:
    """Return each part of the plan with its lines and its exit code; None for one that never ended."""
    parts = []
    for name in (folder / "plan").read_text().split():
        found, code = folder / f"{name}.json", folder / f"{name}.code"
        part: Part = json.loads(found.read_text()) if found.is_file() else {"part": name, "lines": []}
        part["exit_code"] = int(code.read_text()) if code.is_file() else None
        parts.append(part)
    return parts


def lines_of(part: Part, *kinds: str) -> Iterator[dict[str, object]]:
    """Return the lines of a part of these kinds."""
    lines = part["lines"]
    assert isinstance(lines, list)
    return (line for line in lines if line["kind"] in kinds)


def verdict(part: Part) -> str:
    """Return a word for a part: "ok", "FAILED", "KILLED" by its time limit, or "LEFT OUT"."""
    if part["exit_code"] is None:
        return "LEFT OUT"
    if part["exit_code"] in (124, 137):
        return "KILLED"
    return "FAILED" if part["exit_code"] else "ok"


def is_speed(part: Part) -> bool:
    """Tell whether a part only measures."""
    return str(part["part"]).startswith(_SPEED)


def table(parts: list[Part]) -> Iterator[str]:
    """Return the lines of the table: each part's verdict, then all that is not plainly right."""
    for part in parts:
        checks = list(lines_of(part, "check"))
        right = sum(line["ok"] is True for line in checks)
        counts = f"{right}/{len(checks)} checks" if checks else ""
        yield f"\n{part['part']:24} {verdict(part):8} {part.get('seconds', '-'):>6} s  {counts}"
        for line in lines_of(part, "check", "error", "late", "waiting"):
            if line.get("ok") is not True:
                word = "WRONG" if line["kind"] == "check" else str(line["kind"])
                yield f"    {word:8} {line['name']}  {line.get('detail', '')}"
        yield from (_figure(line) for line in lines_of(part, "figure"))


def _figure(line: dict[str, object]) -> str:
    share = line.get("share")
    limit = f"{float(share):7.1%} of the limit" if isinstance(share, int | float) else ""
    return f"    {line['name']:44} {line['value']!s:>12} {line['unit']:8} {limit}  {line.get('detail', '')}"


def main() -> int:
    """Print the table, then the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    parts = read_parts(arguments.folder)
    print("\n".join(table(parts)))
    failed = [part["part"] for part in parts if verdict(part) != "ok"]
    wrong = [part["part"] for part in parts if verdict(part) != "ok" and not is_speed(part)]
    fails = failed if arguments.rehearse else wrong
    print(f"\n{'FAILED: ' + ', '.join(map(str, fails)) if fails else 'ALL RIGHT'}\n")
    document = {"benchmark": "gpu", "failed": failed, "parts": parts}
    print(json.dumps(document))
    (arguments.folder / "all.json").write_text(json.dumps(document))
    return int(bool(fails))


if __name__ == "__main__":
    sys.exit(main())
