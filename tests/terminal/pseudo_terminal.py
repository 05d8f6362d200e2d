"""A real pseudo-terminal with a process in it, and what a terminal would show of it (pyte)."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent.parent
DEADLINE = 60.0  # seconds: generous, for nothing waits this long unless it fails


class _Screen(pyte.HistoryScreen):
    """A screen that answers the questions of programs, as where the cursor is."""

    def __init__(self, columns: int, lines: int, answer: Callable[[bytes], None]) -> None:
        super().__init__(columns, lines, history=100_000, ratio=0.5)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data.encode())


class PseudoTerminal:
    """Runs a Python program; as a context manager it ends the program at the end of the block."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self._set_size(columns, lines)
        self.modes_before = termios.tcgetattr(self._slave)
        self.raw = b""  # all that the program wrote
        self._changed = threading.Condition()
        self._screen = _Screen(columns, lines, self._write)
        self._stream = pyte.ByteStream(self._screen)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("DRAFTLINE_")}
        variables |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **(environment or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            variables.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=variables,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )
        self._is_closing = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _take_terminal(self) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)

    def __enter__(self) -> "PseudoTerminal":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self._is_closing = True
        self._reader.join(DEADLINE)
        os.close(self._slave)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            is_last = self._is_closing
            while select.select([self._master], [], [], 0.01)[0]:
                data = os.read(self._master, 65536)
                with self._changed:
                    self.raw += data
                    self._stream.feed(data)
                    self._changed.notify_all()
            if is_last:
                return

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._master, data) :]

    def type(self, keys: str) -> None:
        """Press keys."""
        self._write(keys.encode())

    def paste(self, text: str) -> None:
        """Paste as terminals do, between marks and with carriage returns."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        """Change the size; what stands there is not wrapped anew, as in xterm."""
        with self._changed:
            self._screen.resize(lines, columns)
            self._set_size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def all_lines(self) -> list[str]:
        """What is on the screen, and what was scrolled off it before."""
        scrolled = [
            "".join(row[column].data for column in range(self._screen.columns)).rstrip()
            for row in self._screen.history.top
        ]
        return scrolled + self.lines

    @property
    def text(self) -> str:
        return "\n".join(self.all_lines)

    def wait_for(self, text: str, *, count: int = 1) -> None:
        """Wait until a text has been shown so many times."""
        self.wait_until(lambda: self.text.count(text) >= count, f"{text!r} {count} times")

    def wait_until(self, condition: Callable[[], bool], what: str = "the screen") -> None:
        with self._changed:
            if not self._changed.wait_for(condition, DEADLINE):
                raise AssertionError(f"never came: {what}; shown is\n{self.text}")

    def wait_for_prompt(self) -> None:
        """Wait until the last line is an empty prompt."""
        self.wait_until(lambda: [line for line in self.lines if line][-1:] == [">"], "an empty prompt")

    def wait(self) -> int:
        """Wait for the program's end and return its exit code, once all it wrote has been read."""
        code = self.process.wait(DEADLINE)
        self._is_closing = True
        self._reader.join(DEADLINE)
        return code

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    @property
    def cursor_is_hidden(self) -> bool:
        return self._screen.cursor.hidden
