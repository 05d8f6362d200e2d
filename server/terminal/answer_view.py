"""How an answer is shown while it comes: as plain text, or as markdown that is drawn again as it grows."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Protocol

from server.terminal.backend import TextPiece
from server.terminal.clean import clean_text
from server.terminal.live_region import LiveRegion
from server.terminal.markdown import Block, find_blocks, render_markdown
from server.terminal.output import Output

_SECONDS_PER_FRAME = 0.07
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MIN_COLUMNS = 20
_MAX_RENDERING_SHARE = 0.2  # of the time: the engine wants the cores
_UNDECIDED = re.compile(r"\n[ ]{0,3}[-=*_#`~>|+:.0-9)]*[ ]*\Z")  # a last line that may become anything


class AnswerView(Protocol):
    """Shows one answer."""

    def push(self, piece: TextPiece) -> None:
        """Take a piece in."""

    def draw(self) -> None:
        """Show what has come; called many times a second on a terminal."""

    def finish(self) -> None:
        """Show everything for good; the cursor is at the beginning of a line then."""


@asynccontextmanager
async def showing(view: AnswerView, *, is_terminal: bool) -> AsyncIterator[None]:
    """Draw the view again and again while the block runs, and finish it whatever ends the block."""
    ticker = asyncio.ensure_future(_draw_often(view)) if is_terminal else None
    try:
        yield
    finally:
        try:
            if ticker is not None:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
        finally:
            view.finish()


async def _draw_often(view: AnswerView) -> None:
    while True:
        started = time.perf_counter()
        view.draw()
        took = time.perf_counter() - started
        await asyncio.sleep(max(_SECONDS_PER_FRAME, took / _MAX_RENDERING_SHARE))


class _Spinner:
    """A line that moves until the first token is there."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def line(self) -> str:
        """Return the line as it is now."""
        seconds = time.perf_counter() - self._started
        frame = _SPINNER[int(seconds / _SECONDS_PER_FRAME) % len(_SPINNER)]
        return f"{frame} {seconds:.0f} s" if seconds >= 1 else frame


class PlainView:
    """The text as the model writes it, but for control characters; thoughts in brackets."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._region = LiveRegion(output.write)
        self._spinner = _Spinner()
        self._last = ""  # character written
        self._is_reasoning = False

    def push(self, piece: TextPiece) -> None:
        """Write a piece; thoughts are not collected."""
        if piece.is_reasoning and not self._output.is_terminal:
            return
        text = clean_text(piece.text)
        if piece.is_reasoning != self._is_reasoning:
            self._is_reasoning = piece.is_reasoning
            text = f"<think>{text}" if piece.is_reasoning else f"</think>\n{text}"
        if text:
            self._region.clear()
            self._last = text[-1]
            self._output.write(text)

    def draw(self) -> None:
        """Turn the spinner while nothing has come."""
        if not self._last:
            self._region.update([], [self._spinner.line()])

    def finish(self) -> None:
        """End the last line."""
        self._region.clear()
        if self._last != "\n":
            self._output.write("\n")


class MarkdownView:
    """Finished blocks are printed once; the last, open one is drawn again below them until it is finished.

    Of an open block that is taller than the terminal the end is drawn; lists give up their finished items
    then, and code its finished lines, which nothing that follows can change.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._region = LiveRegion(output.write)
        self._spinner = _Spinner()
        self._text = ""
        self._thought = ""
        self._start = 0  # of what is not printed for good
        self._num_printed = 0  # lines of the open block, which is code
        self._has_printed = False  # something, from which the next block keeps a distance
        self._is_continued = False  # the open block goes on with a printed list: no distance
        self._num_seen = -1  # characters in the last drawing
        self._size = output.size()
        self._is_resizing = False

    def push(self, piece: TextPiece) -> None:
        """Take a piece in."""
        if piece.is_reasoning:
            self._thought += clean_text(piece.text)
        else:
            self._text += clean_text(piece.text)

    def draw(self) -> None:
        """Draw what has come since."""
        if not self._settle_size():
            return
        if not self._text.strip():
            thought = [] if not self._thought else self._render_thought()[-(self._window - 1) :]
            self._region.update([], [*thought, self._spinner.line()])
        elif self._num_seen != len(self._text):
            self._num_seen = len(self._text)
            finished = self._take_thought() + self._take_finished()
            finished_now, live = self._split_open(_decided(self._text)[self._start :])
            self._region.update(finished + finished_now, live)

    def finish(self) -> None:
        """Print all of it for good."""
        if self._output.size() != self._size:
            self._restart()
        lines = self._take_thought() + self._take_finished()
        rest = self._text[self._start :]
        if rest.strip():
            lines += self._gap() + self._render(rest)[self._num_printed :]
        self._start = len(self._text)
        self._region.update(lines, [])

    @property
    def _width(self) -> int:
        return max(_MIN_COLUMNS, self._size.columns - 1)  # a full line leaves the cursor in a state of doubt

    @property
    def _window(self) -> int:
        return max(2, self._size.lines - 2)

    def _render(self, text: str) -> list[str]:
        return render_markdown(text, self._output.console, self._width)

    def _gap(self) -> list[str]:
        return [""] if self._has_printed and not self._is_continued and not self._num_printed else []

    def _render_thought(self) -> list[str]:
        quoted = "\n".join(f"> {line}" for line in self._thought.strip().split("\n"))
        return self._render(quoted)

    def _take_thought(self) -> list[str]:
        """Return the thought, once, when the answer behind it begins or all is over."""
        if not self._thought.strip() or self._has_printed:
            return []
        self._has_printed = True
        return self._render_thought()

    def _take_finished(self) -> list[str]:
        """Return the lines of the blocks that have been finished since, and move behind them."""
        whole_lines = self._text[self._start : self._text.rfind("\n") + 1]
        blocks = find_blocks(whole_lines)
        lines = list[str]()
        for block, following in pairwise(blocks):
            lines += self._print_block(whole_lines[block.start : following.start])
        if len(blocks) > 1:
            self._start += blocks[-1].start
        return lines

    def _print_block(self, text: str) -> list[str]:
        lines = self._gap() + self._render(text)[self._num_printed :]
        self._has_printed, self._is_continued, self._num_printed = True, False, 0
        return lines

    def _split_open(self, text: str) -> tuple[list[str], list[str]]:
        """Return what of the open block can be printed for good if it is too tall, and the lines to draw."""
        if not text.strip():
            return [], []
        gap, lines = self._gap(), self._render(text)
        lines = lines[self._num_printed :]
        if len(gap) + len(lines) <= self._window:
            return [], gap + lines
        block = next(iter(find_blocks(text)), None)
        if block is not None and block.kind == "fence":
            excess = len(lines) - self._window
            self._num_printed += excess
            self._has_printed = True
            return gap + lines[:excess], lines[excess:]
        if block is not None and len(block.item_starts) > 1:
            return self._split_list(text, block)
        return [], lines[-self._window :]

    def _split_list(self, text: str, block: Block) -> tuple[list[str], list[str]]:
        """Print all items but the last for good."""
        last = block.item_starts[-1]
        finished = self._print_block(text[:last])
        self._start += last
        self._is_continued = True
        return finished, self._render(text[last:])[-self._window :]

    def _settle_size(self) -> bool:
        """Return whether to draw: not while the terminal's size changes, and anew after that."""
        size = self._output.size()
        if size != self._size:
            self._size, self._is_resizing = size, True
            return False
        if self._is_resizing:
            self._is_resizing = False
            self._restart()
        return True

    def _restart(self) -> None:
        """Show the end of all that has come at the new size, on an empty screen."""
        self._size = self._output.size()
        printed = self._text[: self._start]
        self._num_printed, self._num_seen = 0, -1
        if not self._has_printed and self._region.num_rows <= 1 and not self._text.strip():
            self._region.clear()
            return
        self._region.restart(self._size.lines)
        lines = self._render_thought() if self._has_printed and self._thought.strip() else []
        for block in _cut(printed):
            lines += ([""] if lines else []) + self._render(block)
        self._region.update(lines[-self._window :], [])


def _cut(text: str) -> list[str]:
    """Return the top-level blocks of a text."""
    starts = [*(block.start for block in find_blocks(text)), len(text)]
    return [text[start:end] for start, end in pairwise(starts)]


def _decided(text: str) -> str:
    """Leave out a last line that may yet be a rule, a heading's underline, a list or a table."""
    return _UNDECIDED.sub("\n", text)
