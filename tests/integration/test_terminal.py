"""The real default model in a real pseudo-terminal, and in a pipe."""

import re
import subprocess
import sys

from tests.terminal.pseudo_terminal import ROOT, PseudoTerminal


def test_a_chat_from_the_spinner_to_the_last_answer(default_checkpoint, tmp_path):
    flags = ["--model", default_checkpoint.name, "--seed", "1", "--max-tokens", "24"]
    home = {"XDG_STATE_HOME": str(tmp_path)}
    with PseudoTerminal(["-m", "server", "chat", *flags], columns=120, environment=home) as terminal:
        terminal.wait_for("loading smollm2-135m-instruct")
        terminal.type("What is the capital of France?")  # before it can be asked
        terminal.wait_for("> What is the capital of France?")
        assert "llama, 134.5M parameters" in terminal.text
        assert "loading" not in terminal.text
        assert terminal.raw.index(b"loading") < terminal.raw.index(b"/help")
        terminal.type("\r")
        terminal.wait_for("seed 1")
        assert "Paris" in terminal.text
        terminal.wait_for_prompt()
        terminal.type("/retry\r")
        terminal.wait_for("seed 1", count=2)
        first, second = re.findall(r"^.*Paris.*$", terminal.text, re.MULTILINE)
        assert first == second, "same seed, same tokens"
        assert re.search(r"[1-9]\d*/\d+ prompt tokens cached", terminal.text), "the prompt was cached"
        terminal.wait_for_prompt()
        terminal.type("\x04")
        assert terminal.wait() == 0
        assert terminal.modes == terminal.modes_before


def test_complete_with_nothing_but_a_text(default_checkpoint):
    command = [sys.executable, "-m", "server", "complete", "The capital of France is", "--temperature", "0"]
    finished = subprocess.run(
        [*command, "--max-tokens", "4"], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(" Paris")
    assert finished.stderr == ""
