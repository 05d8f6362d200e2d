"""`draftline chat` in a real pseudo-terminal, with a fake backend."""

import os
import re
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.terminal.pseudo_terminal import PseudoTerminal

LOCAL_MODES = 3  # place in what tcgetattr returns
UP, ALT_ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b\r", "\x03", "\x04"


@contextmanager
def chatting(home: Path, *flags: str, columns: int = 120, lines: int = 24) -> Iterator[PseudoTerminal]:
    arguments = ["-m", "tests.terminal.fake_chat", *flags]
    environment = {"XDG_STATE_HOME": str(home), "HOME": str(home)}
    with PseudoTerminal(arguments, columns=columns, lines=lines, environment=environment) as terminal:
        terminal.wait_for_prompt()
        yield terminal


def leave(terminal: PseudoTerminal) -> None:
    terminal.wait_for_prompt()
    terminal.type(CTRL_D)
    assert terminal.wait() == 0
    assert terminal.modes == terminal.modes_before
    assert not terminal.cursor_is_hidden
    assert "Traceback" not in terminal.text


def test_an_answer_its_status_and_the_way_out(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        assert "fake-model  no model at all" in terminal.text
        terminal.type("say **bold** words\r")
        terminal.wait_for("96/100 prompt tokens cached")
        assert "bold words" in terminal.lines
        assert "seed 4711" in terminal.text
        leave(terminal)


def test_up_brings_back_what_was_typed_here_and_in_earlier_chats(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("say first\r")
        terminal.wait_for("seed 4711")
        terminal.wait_for_prompt()
        terminal.type(UP + "\r")
        terminal.wait_for("seed 4711", count=2)
        assert "^[[A" not in terminal.text
        leave(terminal)
    path = tmp_path / "draftline/chat_history.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    with chatting(tmp_path) as terminal:
        terminal.type(UP + " again\r")
        terminal.wait_for("first again", count=2)
        leave(terminal)
    with chatting(tmp_path, "--no-history") as terminal:
        before = path.read_text()
        terminal.type(UP + "say secret\r")
        terminal.wait_for("seed 4711")
        terminal.wait_for_prompt()
        terminal.type(UP + "\r")  # in this chat it is remembered
        terminal.wait_for("seed 4711", count=2)
        leave(terminal)
    assert path.read_text() == before


@pytest.mark.parametrize(
    "keys",
    [f"one{ALT_ENTER}two\r", "one\\\rtwo\r", '"""one\rtwo"""\r', '"""\rone\rtwo\r"""\r'],
    ids=["alt-enter", "backslash", "quotes", "quotes on lines of their own"],
)
def test_a_message_of_several_lines(keys: str, tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type(keys)
        terminal.wait_for('["u:one\\ntwo"]')
        leave(terminal)


def test_a_hundred_pasted_lines_are_one_message(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(100)]
    with chatting(tmp_path, "--plain") as terminal:
        terminal.paste("\n".join(lines))
        terminal.wait_for("line 99")
        terminal.type("\r")
        terminal.wait_for("seed 4711")
        assert "u:" + "\\n".join(lines).replace(" ", "") in "".join(terminal.all_lines).replace(" ", "")
        assert terminal.text.count("seed 4711") == 1
        leave(terminal)


def test_ctrl_c_stops_an_answer_and_keeps_its_part(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("begin half\r")
        terminal.wait_until(lambda: "half" in terminal.lines)
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for('["u:begin half", "a:half", "u:next"]')
        leave(terminal)


def test_ctrl_c_before_the_first_token_leaves_no_turn(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("begin \r")
        terminal.wait_until(lambda: any(frame in terminal.text for frame in "⠋⠙⠹⠸⠼⠴"), "the spinner")
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for('["u:next"]')
        assert not re.search("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", terminal.text)
        leave(terminal)


def test_ctrl_c_at_the_prompt(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("no such thing" + CTRL_C)
        terminal.wait_for_prompt()
        terminal.type("say hello\r")
        terminal.wait_for("seed 4711")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C again leaves")
        terminal.wait_for_prompt()
        terminal.type("x" + CTRL_C)  # no second time in a row
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-C again leaves", count=2)
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        assert terminal.wait() == 0
        assert terminal.modes == terminal.modes_before


def test_what_is_typed_during_an_answer_waits_for_the_prompt(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text("one ")
    with chatting(tmp_path) as terminal:
        terminal.type(f"file {answer}\r")
        terminal.wait_until(lambda: "one" in terminal.lines)
        terminal.type("say typed ahead")
        assert not terminal.modes[LOCAL_MODES] & termios.ECHO
        with answer.open("a") as file:
            file.write("twoEND")
        terminal.wait_for("> say typed ahead")
        assert "one two" in terminal.lines
        assert terminal.text.count("typed ahead") == 1, "it was echoed into the answer"
        terminal.type("\r")
        terminal.wait_for("seed 4711", count=2)
        leave(terminal)


def test_keys_of_several_lines_that_are_typed_during_an_answer_that_is_stopped(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("begin half\r")
        terminal.wait_until(lambda: "half" in terminal.lines)
        terminal.type(f"one{ALT_ENTER}two\r" + CTRL_C)  # Ctrl-C discards nothing
        terminal.wait_for('["u:begin half", "a:half", "u:one\\ntwo"]')
        leave(terminal)


def test_an_unknown_command_is_said_to_be_unknown(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("/hlep\r")
        terminal.wait_for("unknown command /hlep: did you mean /help?")
        terminal.wait_for_prompt()
        terminal.type("//etc/hosts\r")
        terminal.wait_for('["u:/etc/hosts"]')
        leave(terminal)


def test_tab_completes_commands_and_parameters(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("/par\ttop_p\t0.5\r")
        terminal.wait_for("top_p 0.5")
        terminal.wait_for_prompt()
        terminal.type("/re\t\t")
        terminal.wait_for("retry")
        assert "reset" in terminal.text
        terminal.type("set\r")
        terminal.wait_for("forgotten")
        leave(terminal)


LIST = "".join(f"{number}. item number {number}\\n" for number in range(1, 61))
CODE = "```python\\n" + "".join(f"line_{number} = {number}\\n" for number in range(60)) + "```\\n"
TABLE = "| a | b |\\n|---|---|\\n" + "".join(f"| row {number} | {number} |\\n" for number in range(60))


@pytest.mark.parametrize(
    ("markdown", "pattern", "count"),
    [
        (LIST + "\\nthe end", r"item number (\d+)", 60),
        (CODE + "\\nthe end", r"line_(\d+) = ", 60),
        (TABLE + "\\nthe end", r"row (\d+)", 60),
    ],
    ids=["list", "code", "table"],
)
def test_an_answer_longer_than_the_screen_is_shown_once(
    markdown: str, pattern: str, count: int, tmp_path: Path
) -> None:
    with chatting(tmp_path, lines=12) as terminal:
        terminal.type('"""letters ' + markdown + '"""\r')
        terminal.wait_for("seed 4711")
        shown = terminal.text[terminal.text.rindex('the end"""') :]
        numbers = [int(number) for number in re.findall(pattern, shown)]
        assert numbers == list(range(numbers[0], numbers[0] + count))
        assert shown.count("the end") == 2  # in the question, and in the answer
        assert "```" not in shown.partition('"""')[2]
        leave(terminal)


def test_a_resize_while_an_answer_streams(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text("# Title\n\n" + "early " * 15 + "\n\n- an item\n- another " + "word " * 15)
    with chatting(tmp_path) as terminal:
        terminal.type(f"file {answer}\r")
        terminal.wait_for("another")
        for columns, lines in ((40, 20), (100, 30), (60, 15)):
            terminal.resize(columns, lines)
            with answer.open("a") as file:
                file.write(f"size{columns} ")
            terminal.wait_until(lambda mark=f"size{columns}": mark in "".join(terminal.lines))
        with answer.open("a") as file:
            file.write("\n\nlast paragraphEND")
        terminal.wait_for("seed 4711")
        screen = "\n".join(terminal.lines)
        words = " ".join(screen.split())
        assert words.count("Title") == words.count("an item") == words.count("last paragraph") == 1
        assert "size40 size100 size60" in words
        assert words.count("word") == words.count("early") == 15
        leave(terminal)


def test_a_resize_while_code_that_is_longer_than_the_screen_streams(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    answer.write_text("```\n" + "".join(f"line {number}\n" for number in range(40)))
    with chatting(tmp_path, lines=20) as terminal:
        terminal.type(f"file {answer}\r")
        terminal.wait_for("line 39")
        terminal.resize(100, 60)
        with answer.open("a") as file:
            file.write("line 40\n")
        terminal.wait_for("line 40")
        with answer.open("a") as file:
            file.write("```\nthe endEND")
        terminal.wait_for("seed 4711")
        numbers = [int(number) for number in re.findall(r"line (\d+)", "\n".join(terminal.lines))]
        assert numbers == list(range(41)), "the screen has room for all of it now"
        leave(terminal)


def test_escape_sequences_of_a_model_do_nothing(tmp_path: Path) -> None:
    evil = r"a\x1b[2Jb\x1b]0;title\x07c\x9b31md\x00e\rf\x08g"
    for flags in ([], ["--plain"]):
        with chatting(tmp_path, *flags) as terminal:
            terminal.type(f"letters {evil}\r")
            terminal.wait_for("seed 4711")
            assert "a[2Jb]0;titlec31mdefg" in terminal.lines
            assert b"\x1b[2J" not in terminal.raw
            assert b"\x1b]0;title" not in terminal.raw
            leave(terminal)


def test_a_thought_stands_before_its_answer(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("think so it is\r")
        terminal.wait_for("seed 4711")
        shown = [line for line in terminal.lines if line]
        assert shown[shown.index("▌ let me see") + 1] == "so it is"
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for('"a:so it is"')
        leave(terminal)


def test_an_answer_that_fails_keeps_the_conversation(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("say one\r")
        terminal.wait_for("seed 4711")
        terminal.wait_for_prompt()
        terminal.type("fail\r")
        terminal.wait_for("the connection broke (/retry asks again)")
        terminal.wait_for_prompt()
        terminal.type("/retry\r")
        terminal.wait_for("the connection broke", count=2)
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for('["u:say one", "a:one", "u:next"]')
        leave(terminal)


def test_the_terminal_is_restored_after_a_crash(tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        terminal.type("crash\r")
        assert terminal.wait() == 1
        assert "RuntimeError: a bug" in terminal.text
        assert "half an answer" in terminal.text
        assert terminal.modes == terminal.modes_before
        assert not terminal.cursor_is_hidden


@pytest.mark.parametrize("when", ["at the prompt", "during an answer"])
def test_the_terminal_is_restored_after_sigterm(when: str, tmp_path: Path) -> None:
    with chatting(tmp_path) as terminal:
        if when == "during an answer":
            terminal.type("begin half\r")
            terminal.wait_until(lambda: "half" in terminal.lines)
        assert terminal.modes != terminal.modes_before
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
        assert terminal.modes == terminal.modes_before
        assert not terminal.cursor_is_hidden
        assert terminal.raw.count(b"\x1b[?2004l") >= 1, "bracketed paste stayed on"
        assert "Traceback" not in terminal.text


def test_saving_and_loading(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with chatting(tmp_path, "--system", "be kind", "--temperature", "0.5") as terminal:
        terminal.type("say one\r")
        terminal.wait_for("seed 4711")
        terminal.wait_for_prompt()
        terminal.type(f"/save {path}\r")
        terminal.wait_for("wrote ")
        terminal.wait_for_prompt()
        terminal.type(f"/save {path}\r")
        terminal.wait_for("exists already")
        terminal.wait_for_prompt()
        terminal.type(f"/save -f {path}\r")
        terminal.wait_for("overwrote ")
        leave(terminal)
    with chatting(tmp_path) as terminal:
        terminal.type(f"/load {path}\r")
        terminal.wait_for("2 messages and the parameters")
        terminal.wait_for_prompt()
        terminal.type("/params\r")
        terminal.wait_for("temperature 0.5")
        terminal.wait_for_prompt()
        terminal.type("next\r")
        terminal.wait_for('["s:be kind", "u:say one", "a:one", "u:next"]')
        leave(terminal)
