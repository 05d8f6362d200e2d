"""MessageSource: where a chat's messages come from, somebody who types or the lines of a pipe."""

from typing import Protocol, TextIO

from server.terminal.typed_message import is_complete, without_marks

_MAX_MESSAGE_CHARS = 4 * 2**20


class Interrupted(Exception):  # noqa: N818 - no error: somebody pressed Ctrl-C
    """Ctrl-C instead of a message."""

    def __init__(self, *, was_empty: bool) -> None:
        super().__init__()
        self.was_empty = was_empty  # nothing had been typed


class MessageSource(Protocol):
    """Gives one message after the other."""

    async def read(self) -> str | None:
        """Return the next message, None at the end; raises Interrupted."""


class PipedLines:
    """The lines of a file or pipe: a message each, but for those that a backslash or quotes join."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    async def read(self) -> str | None:
        """Return the next message, None at the end."""
        text, line = "", self._file.readline(_MAX_MESSAGE_CHARS)
        if not line:
            return None
        while line:
            text += line.removesuffix("\n")
            if is_complete(text) or len(text) > _MAX_MESSAGE_CHARS:
                break
            text = text.removesuffix("\\") + "\n"
            line = self._file.readline(_MAX_MESSAGE_CHARS)
        return without_marks(text)
