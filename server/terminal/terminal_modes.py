"""The terminal's modes while a chat runs, and back to what they were whatever ends it."""

import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_INPUT, _LOCAL, _CHARACTERS = 0, 3, 6  # places in what tcgetattr returns
_SHOW_CURSOR, _NO_BRACKETED_PASTE, _WRAP, _PLAIN = "\x1b[?25h", "\x1b[?2004l", "\x1b[?7h", "\x1b[0m"
_SIGNAL_CODE = 128  # and the signal's number: what a shell reports


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keep keys for the next prompt, unseen, while something else is shown; restore the terminal at the end.

    Ctrl-C still sends its signal, and discards neither keys nor output. SIGTERM and SIGHUP end the process
    through the `finally` blocks, here and elsewhere. Does nothing if the standard input is no terminal.
    """
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, _without_echo(descriptor))
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
            if sys.stdout.isatty():
                sys.stdout.write(_WRAP + _NO_BRACKETED_PASTE + _SHOW_CURSOR + _PLAIN)
                sys.stdout.flush()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _without_echo(descriptor: int) -> list[Any]:
    modes: list[Any] = termios.tcgetattr(descriptor)
    characters = modes[_CHARACTERS]
    modes[_INPUT] &= ~termios.ICRNL  # Enter stays what the prompt takes for Enter
    modes[_LOCAL] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    modes[_LOCAL] |= termios.NOFLSH
    for place in (termios.VSUSP, termios.VQUIT):  # a key like any other, until the prompt is there
        characters[place] = os.fpathconf(descriptor, "PC_VDISABLE").to_bytes(1, "little")
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return modes


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_SIGNAL_CODE + number)
