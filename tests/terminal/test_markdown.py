"""Markdown that grows: nothing is lost or shown twice, however it comes and however small the screen is."""

import io
import os
import re

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from server.terminal.answer_view import MarkdownView
from server.terminal.backend import TextPiece
from server.terminal.clean import clean_line, clean_text
from server.terminal.markdown import find_blocks, render_markdown
from server.terminal.output import Output


class Screen(Output):
    """An output whose terminal is read with pyte."""

    def __init__(self, columns: int, lines: int) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False)
        super().__init__(console, console)
        object.__setattr__(self, "screen", pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5))
        object.__setattr__(self, "stream", pyte.Stream(self.screen))

    screen: pyte.HistoryScreen
    stream: pyte.Stream

    def write(self, text: str) -> None:
        self.stream.feed(text)

    def size(self) -> os.terminal_size:
        return os.terminal_size((self.screen.columns, self.screen.lines))

    @property
    def shown(self) -> list[str]:
        scrolled = [
            "".join(row[column].data for column in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        lines = scrolled + [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def show(text: str, *, size: int = 3, columns: int = 60, lines: int = 10) -> list[str]:
    """Return what a terminal shows after a text came in pieces, drawn after each."""
    screen = Screen(columns, lines)
    view = MarkdownView(screen)
    for start in range(0, len(text), size):
        view.push(TextPiece(text[start : start + size]))
        view.draw()
    view.finish()
    return screen.shown


SAMPLES = {
    "poem": "Roses are red,\nviolets are blue,\n\n*sugar* is sweet.",
    "list": "Numbers:\n\n" + "".join(f"{i}. item {i} and some words\n" for i in range(1, 30)) + "\nend",
    "nested": "- a\n  - b\n  - c\n- d\n\n1. e\n1. f\n1. g",
    "code": "Look:\n\n```python\ndef f(x):\n    return [x]\n\n\nprint(f(1))\n```\nand on",
    "open code": "```\n" + "".join(f"line {i}\n" for i in range(40)),
    "table": "| name | value |\n|---|--:|\n" + "".join(f"| row {i} | {i} |\n" for i in range(20)) + "\nend",
    "headings": "# One\ntext\n## Two\ntext\nThree\n-----\ntext",
    "quote": "> quoted\n> more\n\n---\n\nafter",
    "html": "Use <b>bold</b> and List<int>.\n\n<div>\nblock\n</div>\n\n[a]: http://b",
    "link": "See [this](http://example.com) page.",
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_is_shown_does_not_depend_on_the_pieces(name: str, size: int) -> None:
    text = SAMPLES[name]
    words = re.sub(r"\s+", " ", " ".join(show(text, size=size)))
    at_once = re.sub(r"\s+", " ", " ".join(show(text, size=len(text), lines=200)))
    assert words == at_once


def test_every_sample_is_rendered_to_the_last_word() -> None:
    shown = {name: "\n".join(show(text, lines=200)) for name, text in SAMPLES.items()}
    assert shown["poem"].split("\n")[:2] == ["Roses are red,", "violets are blue,"]
    assert "<b>bold</b> and List<int>" in shown["html"]
    assert "<div>" in shown["html"]
    assert "[a]: http://b" in shown["html"]
    assert "this (http://example.com)" in shown["link"]
    assert "```" not in shown["code"]
    assert shown["nested"].split("\n") == [" • a", "    • b", "    • c", " • d", "", " 1 e", " 2 f", " 3 g"]
    numbers = [f" {number} item {number} and some words" for number in range(1, 30)]
    assert [line.strip() for line in show(SAMPLES["list"])] == [
        *("Numbers:", ""),
        *(line.strip() for line in numbers),
        *("", "end"),
    ]


MARKS = [
    "- ",
    "1. ",
    "# ",
    "```",
    "`",
    "**",
    "*",
    "_",
    "> ",
    "---",
    "===",
    "~~",
    "[",
    "](",
    ")",
    "<b>",
    "&amp;",
    "\\",
    "    ",
    "\t",
    "日本",
    "🎉",
    "![",
    "2) ",
    "[x]: y",
]
WORDS = st.sampled_from(["word", "word", " ", "\n", "\n\n", "|", "|---|\n", *MARKS])


@example("```word", 1, 20, 4)
@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=40).map("".join), st.integers(1, 9), st.integers(20, 60), st.integers(4, 20))
def test_words_are_neither_lost_nor_shown_twice(text: str, size: int, columns: int, lines: int) -> None:
    shown = "".join(show(text, size=size, columns=columns, lines=lines))
    assert shown.replace(" ", "").count("word") == text.count("word")


@given(st.lists(WORDS, max_size=30).map("".join), st.lists(WORDS, max_size=10).map("".join))
def test_all_blocks_but_the_last_stay_whatever_follows(text: str, more: str) -> None:
    text = text + "\n"
    before = [(block.kind, block.start) for block in find_blocks(text)]
    after = [(block.kind, block.start) for block in find_blocks(text + more)]
    assert after[: len(before) - 1] == before[:-1] if before else True


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    cleaned = clean_text(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", cleaned)
    line = clean_line(text, max_chars=50)
    assert len(line) <= 50
    assert not re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", line)


@given(st.text(), st.integers(0, 50))
def test_cleaning_does_not_depend_on_the_cut(text: str, cut: int) -> None:
    assert clean_text(text[:cut]) + clean_text(text[cut:]) == clean_text(text)


def test_what_the_renderer_fails_on_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr("server.terminal.markdown._AnswerMarkdown", lambda _: 1 / 0)
    assert render_markdown("# as it is", console, 40) == ["# as it is"]
