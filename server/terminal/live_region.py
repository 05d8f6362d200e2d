"""LiveRegion: the last lines of the terminal, drawn again in place while an answer grows."""

from collections.abc import Callable, Sequence

_ERASE_LINE_END, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"


class LiveRegion:
    """Some lines above which finished ones are printed.

    Every update is one write that overwrites and never clears first, so nothing flickers. The terminal does
    not wrap live lines: each takes one row whatever a terminal thinks of the width of its characters, so the
    way back to the first of them is always known.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.num_rows = 0  # drawn, the cursor in the last of them

    def update(self, finished: Sequence[str], live: Sequence[str]) -> None:
        """Print finished lines for good where the region begins, and the live ones below them."""
        parts = [self._to_start()]
        parts += [f"{line}{_ERASE_LINE_END}\r\n" for line in finished]
        if live:
            body = f"{_ERASE_LINE_END}\r\n".join(live)
            parts.append(f"{_WRAP_OFF}{body}{_WRAP_ON}")
        parts.append(_ERASE_BELOW)
        self.num_rows = len(live)
        self._write("".join(parts))

    def clear(self) -> None:
        """Take the live lines away."""
        if self.num_rows:
            self.update([], [])

    def restart(self, num_rows: int) -> None:
        """Begin on an empty screen of `num_rows`: after a resize nobody knows where the old lines are.

        They are scrolled out of sight, not erased, for what stood above them must not be lost.
        """
        self._write("\r\n" * num_rows + "\x1b[H" + _ERASE_BELOW)
        self.num_rows = 0

    def _to_start(self) -> str:
        if self.num_rows == 0:
            return ""
        up = f"\x1b[{self.num_rows - 1}A" if self.num_rows > 1 else ""
        return f"\r{up}"
