"""Report: what a part found, printed as it comes and saved as JSON with each line, should it be killed."""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.gpu.wiring import NotThereError

Kind = Literal["check", "figure", "waiting", "late", "error"]

_TRACE_LINES = 12


class Report:
    """The lines of one part, in `folder`/part.json.

    A check is right or wrong. A figure has a unit and perhaps the share of what the card allows. `waiting`:
    what is to be tried does not exist yet. `late`: left out, for the part's time was nearly over.
    """

    def __init__(self, part: str, folder: Path) -> None:
        self._part, self._path = part, folder / f"{part}.json"
        self._lines: list[dict[str, object]] = []
        self._started = time.monotonic()
        self._is_closed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def check(self, name: str, is_right: bool, detail: str = "") -> None:
        """Note whether something is as it must be."""
        self._add("check", name, ok=bool(is_right), detail=detail)

    def figure(
        self, name: str, value: float, unit: str, *, share: float | None = None, detail: str = ""
    ) -> None:
        """Note a measurement; `share` is of the limit that the card sets, 1 being all of it."""
        digits = 4 if abs(value) < 10 else 1
        rounded = None if share is None else round(share, 3)
        self._add("figure", name, value=round(value, digits), unit=unit, share=rounded, detail=detail)

    def waiting(self, name: str, what: str) -> None:
        """Note that what is to be tried does not exist yet."""
        self._add("waiting", name, detail=what)

    def late(self, name: str) -> None:
        """Note what was left out for want of time."""
        self._add("late", name)

    def error(self, name: str, error: BaseException) -> None:
        """Note an exception, with the end of its traceback."""
        trace = "".join(traceback.format_exception(error)).splitlines()[-_TRACE_LINES:]
        print("\n".join(trace), flush=True)
        self._add("error", name, detail=f"{type(error).__name__}: {error}"[:600], trace=trace)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Keep an exception to the lines inside: what follows is still tried."""
        started = time.monotonic()
        try:
            yield
        except NotThereError as error:
            self.waiting(name, str(error))
        except Exception as error:  # noqa: BLE001 - it is the part's result
            self.error(name, error)
        print(f"# {name}: {time.monotonic() - started:.1f} s", flush=True)

    def close(self) -> int:
        """Note that the part came to its end, and return the exit status."""
        self._is_closed = True
        self._save()
        return int(any(line["kind"] == "error" or line.get("ok") is False for line in self._lines))

    def _add(self, kind: Kind, name: str, **fields: object) -> None:
        kept = {key: value for key, value in fields.items() if value not in (None, "")}
        line: dict[str, object] = {"kind": kind, "name": name, **kept}
        print(json.dumps({key: value for key, value in line.items() if key != "trace"}), flush=True)
        self._lines.append(line)
        self._save()

    def _save(self) -> None:
        document = {
            "part": self._part,
            "is_complete": self._is_closed,
            "seconds": round(time.monotonic() - self._started, 1),
            "lines": self._lines,
        }
        self._path.write_text(json.dumps(document))
