"""The conversation, its file, what is typed, the history, and what is said behind an answer."""

import json
import os
import stat
from pathlib import Path

import pytest

from server.terminal.backend import AnswerStats, Message
from server.terminal.conversation import Conversation, ConversationFileError, load, save
from server.terminal.history import MAX_ENTRIES, MAX_ENTRY_CHARS, FileHistory
from server.terminal.settings import AnswerParams
from server.terminal.status_line import AnswerTimes, SessionTotals, status_line
from server.terminal.typed_message import is_complete, without_marks


def texts(messages: tuple[Message, ...] | None) -> list[str]:
    return [f"{message.role[0]}:{message.content}" for message in messages or ()]


def talk() -> Conversation:
    conversation = Conversation(system="s", params=AnswerParams(temperature=0.5))
    conversation.ask("one")
    conversation.answer("1")
    conversation.ask("two")
    conversation.answer("2")
    return conversation


def test_a_question_counts_once_it_is_answered() -> None:
    conversation = talk()
    assert texts(conversation.ask("three")) == ["s:s", "u:one", "a:1", "u:two", "a:2", "u:three"]
    assert texts(conversation.messages) == ["s:s", "u:one", "a:1", "u:two", "a:2"]


def test_a_new_answer_replaces_the_old_one_only_when_it_is_there() -> None:
    conversation = talk()
    assert texts(conversation.ask_again()) == ["s:s", "u:one", "a:1", "u:two"]
    assert texts(conversation.messages)[-1] == "a:2"
    conversation.ask("three")  # the new answer never came
    conversation.answer("3")
    assert texts(conversation.messages)[3:] == ["u:two", "a:2", "u:three", "a:3"]
    conversation.ask_again()
    conversation.answer("III")
    assert texts(conversation.messages)[3:] == ["u:two", "a:2", "u:three", "a:III"]


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(talk(), path, model="m", may_overwrite=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = Conversation(system=None, params=AnswerParams())
    other.replace(load(path))
    assert other.messages == talk().messages
    assert other.params == talk().params


def test_nothing_is_overwritten_unless_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("precious")
    with pytest.raises(ConversationFileError, match="exists already"):
        save(talk(), path, model="m", may_overwrite=False)
    assert path.read_text() == "precious"
    save(talk(), path, model="m", may_overwrite=True)
    assert load(path).model == "m"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConversationFileError, match="cannot be written: No such file"):
        save(talk(), tmp_path / "no/talk.json", model="m", may_overwrite=False)


GOOD = {"format": "draftline-chat", "version": 1, "model": "m", "messages": [], "params": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no saved conversation"),
        ("[" * 100_000, "no saved conversation"),
        ({**GOOD, "format": "x"}, "format: "),
        ({**GOOD, "version": 2}, "version: "),
        ({**GOOD, "extra": 2}, "extra: "),
        (
            {**GOOD, "params": {"temperature": 3}},
            "params.temperature: input should be",
        ),
        ({**GOOD, "params": {"temprature": 1}}, "params.temprature: "),
        ({**GOOD, "messages": [{"role": "tool", "content": ""}]}, "messages.0.role: "),
        ({**GOOD, "messages": [{"role": "user", "content": 5}]}, "messages.0.content: "),
        ({**GOOD, "messages": [{"role": "user", "content": ""}] * 10_001}, "messages: "),
        (" " * (16 * 2**20 + 1), "more than 16,777,216 bytes"),
    ],
    ids=range(11),
)
def test_what_is_wrong_with_a_file_is_named(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConversationFileError) as raised:
        load(path)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConversationFileError, match="no such file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("typed", "complete", "message"),
    [
        ("hello", True, "hello"),
        ("  hello \n", True, "hello"),
        ("hello\\", False, None),
        ("one\ntwo", True, "one\ntwo"),
        ('"""', False, None),
        ('"""one', False, None),
        ('"""one\ntwo"""', True, "one\ntwo"),
        ('"""\none\n\ntwo\n"""', True, "one\n\ntwo"),
        ('""""""', True, ""),
        ('say """x', True, 'say """x'),
        ('"""one\\', False, None),
    ],
)
def test_where_a_message_ends(typed: str, complete: bool, message: str | None) -> None:
    assert is_complete(typed) is complete
    if message is not None:
        assert without_marks(typed) == message


def entries(path: Path) -> list[str]:
    return list(FileHistory(path).load_history_strings())


def test_the_history_keeps_the_newest_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state/history.jsonl"
    history = FileHistory(path)
    for number in range(3 * MAX_ENTRIES):
        history.store_string(f"line\n{number}")
    history.store_string("x" * (MAX_ENTRY_CHARS + 1))
    assert entries(path) == [f"line\n{number}" for number in range(2 * MAX_ENTRIES, 3 * MAX_ENTRIES)][::-1]
    assert len(path.read_text().splitlines()) == MAX_ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_rights_are_taken_from_others_and_broken_lines_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('"one"\n{"no": "entry"}\nhalf a li\n"two"\n"thr')
    path.chmod(0o644)
    assert entries(path) == ["two", "one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = FileHistory(tmp_path / "file/history.jsonl")
    assert history.error is not None
    assert "the history is not kept" in history.error
    history.store_string("x")
    assert list(history.load_history_strings()) == []


FULL = AnswerStats(
    prompt_tokens=1200,
    completion_tokens=101,
    cached_tokens=1100,
    drafted_tokens=40,
    accepted_tokens=30,
    seed=5,
    finish_reason="stop",
)


@pytest.mark.parametrize(
    ("stats", "line"),
    [
        (
            FULL,
            "101 tokens, 50.0 tok/s, first in 0.50 s, 1,100/1,200 prompt tokens cached, "
            "30/40 drafts accepted, seed 5",
        ),
        (AnswerStats(), "first in 0.50 s"),
        (AnswerStats(prompt_tokens=1, completion_tokens=1), "1 token, first in 0.50 s, 1 prompt token"),
        (
            AnswerStats(completion_tokens=0, finish_reason="length"),
            "0 tokens, first in 0.50 s, cut off: max_tokens or the context is used up",
        ),
    ],
    ids=["everything", "nothing", "one token", "cut off"],
)
def test_the_status_line_says_what_is_known(stats: AnswerStats, line: str) -> None:
    assert status_line(stats, AnswerTimes(first=0.5, last=2.5)) == line


def test_totals_are_sums() -> None:
    totals = SessionTotals()
    assert totals.lines() == ["no answer yet"]
    for last in (1.5, 2.5, 3.5):
        totals.add(FULL, AnswerTimes(first=0.5, last=last))
    first, cached, drafts, _ = totals.lines()
    assert first == "3 answers, 303 tokens, median 50.0 tok/s"
    assert cached == "3,300/3,600 prompt tokens cached"
    assert drafts == "90/120 drafts accepted"
