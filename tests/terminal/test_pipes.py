"""`draftline chat` and `complete` without a terminal: only answers on the standard output."""

import subprocess
import sys

import pytest

from server.terminal.settings import AnswerParams
from tests.fakes import FakeEngine, cut, say
from tests.server.harness import serving
from tests.terminal.pseudo_terminal import ROOT


def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def chat(typed: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return run("tests.terminal.fake_chat", *flags, typed=typed)


def test_a_line_is_a_message_and_only_answers_are_on_the_standard_output() -> None:
    finished = chat("say # one\n\n/seed 5\nx\\\ny\n")
    assert finished.returncode == 0
    assert finished.stdout == '# one\n["u:say # one", "a:# one", "u:x\\ny"]\n'
    assert "seed 5" in finished.stderr
    assert "\x1b" not in finished.stdout + finished.stderr


def test_quotes_join_lines_and_the_last_line_needs_no_end() -> None:
    assert chat('"""one\n\ntwo"""').stdout == '["u:one\\n\\ntwo"]\n'
    assert chat('"""one\n\ntwo').stdout == '["u:\\"\\"\\"one\\n\\ntwo"]\n'


def test_control_characters_do_not_pass_a_pipe() -> None:
    assert chat(r"letters a\x1b[31mb\tc\x9bd").stdout == "a[31mb\tcd\n"


def test_a_failed_answer_is_an_exit_code_and_the_others_still_come() -> None:
    finished = chat("fail\nsay two\n")
    assert finished.returncode == 1
    assert finished.stdout == "half an answer\ntwo\n"
    assert finished.stderr == "the connection broke\n"


def test_thoughts_are_not_collected() -> None:
    assert chat("think so it is\n").stdout == "so it is\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"yes 'say something' | {sys.executable} -m tests.terminal.fake_chat | head -n 1"
    finished = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert finished.stdout == "something\n"


def test_chat_and_complete_against_a_server() -> None:
    engine = FakeEngine(lambda request: cut(say("hello there", eos=True), request.params.max_tokens))
    with serving(engine) as server:
        finished = run("server", "chat", "--url", server.url, typed="hi\n")
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, "hello there\n", "")
        flags = ("--url", server.url, "--max-tokens", "5", "--seed", "3", "--top-k", "4")
        finished = run("server", "complete", "-", *flags, typed="Once\nupon")
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, "hello\n", "")
        request = engine.requests[-1]
        assert bytes(request.prompt_token_ids) == b"Once\nupon"
        assert (request.params.seed, request.params.top_k) == (3, 4)
        finished = run("server", "complete", "x", "--url", server.url, "--model", "other")
        assert finished.returncode == 2
        (line,) = finished.stderr.splitlines()
        assert "other" in line


@pytest.mark.parametrize("arguments", [["complete"], ["complete", "x", "--temperature", "3"]])
def test_complete_says_what_is_missing_or_wrong(arguments: list[str]) -> None:
    finished = run("server", *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


def test_input_that_is_no_text() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "server", "complete", "-"],
        input=b"abc\xff",
        capture_output=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith(b"error: the standard input is not UTF-8: byte 3")


def test_params_that_are_left_out_are_the_servers() -> None:
    assert AnswerParams().model_dump(exclude_none=True) == {}
