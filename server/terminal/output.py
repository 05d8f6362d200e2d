"""Output: answers go to the standard output; what the program itself says, beside them only on a terminal."""

import os
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from rich.theme import Theme

from server.terminal.clean import clean_text

# Colours that can be read on any background: rich's own for code brings a black one.
_THEME = Theme({"markdown.code": "bold cyan", "markdown.code_block": "none", "markdown.h1": "bold underline"})


@dataclass(frozen=True)
class Output:
    """Where answers and notes are written.

    Whatever is written is cleaned of control characters first, so that no model, server or file can act on
    the terminal.
    """

    console: Console  # of answers
    notes: Console  # the same on a terminal, else of the standard error

    @property
    def is_terminal(self) -> bool:
        """True if answers are seen as they come, not collected."""
        return self.console.is_terminal

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        self._print(Text(clean_text(text), style="dim"))

    def error(self, text: str) -> None:
        """Say what went wrong."""
        self._print(Text(clean_text(text), style="red"))

    def _print(self, text: Text) -> None:
        self.notes.print(text, soft_wrap=not self.notes.is_terminal)  # lines of a file are not cut

    def write(self, text: str) -> None:
        """Write to the standard output as it is, now."""
        self.console.file.write(text)
        self.console.file.flush()

    def size(self) -> os.terminal_size:
        """Return columns and lines of the terminal as they are now."""
        width, height = self.console.size
        return os.terminal_size((width, height))


def standard_output() -> Output:
    """Return the output of this process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the locale lacks must not end a chat
    console = Console(highlight=False, theme=_THEME)
    return Output(console, console if console.is_terminal else Console(stderr=True, highlight=False))
