"""The command line: instant help, errors in one line, what the start-up prints."""

import io
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from engine.checkpoint import list_models
from engine.interface.info import EngineInfo
from server.cli import main, print_banner
from tests.fakes import FakeEngine
from tests.server.harness import served_model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "chat", "models"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["chat", "--help"], ["models", "--help"]]
)
def test_help_costs_no_import_of_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from server.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("usage: ")


def test_version_and_python_dash_m() -> None:
    finished = run("--version")
    assert finished.returncode == 0
    assert finished.stdout.startswith("draftline ")


def test_an_unknown_command_is_refused() -> None:
    finished = run("sreve")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--port", "-1"], ["serve", "--port=0", "--model=no-such-model"], ["chat", "--model=no.gguf"]],
)
def test_an_error_is_one_line_and_code_2(arguments: list[str]) -> None:
    finished = run(*arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("serve", "--port", str(port))
    assert finished.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in finished.stderr


def test_models_shows_the_default_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "smollm2" in capsys.readouterr().out


def test_models_verify_says_what_is_damaged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [model] = list_models()
    for is_intact, word, code in ((True, "intact", 0), (False, "DAMAGED", 1)):
        found = [(model.name, is_intact)]
        monkeypatch.setattr("engine.checkpoint.verify_models", lambda found=found: found)
        monkeypatch.setattr("engine.checkpoint.list_models", lambda: [replace(model, is_cached=True)])
        if code:
            with pytest.raises(SystemExit, match="1"):
                main(["models", "--verify"])
        else:
            assert main(["models", "--verify"]) == 0
        assert word in capsys.readouterr().out


def test_the_banner_says_what_is_served_and_how_to_try_it() -> None:
    engine = FakeEngine()
    engine.info = EngineInfo(
        device="cpu",
        dtype="as stored",
        kernels="avx2",
        kv_cache_dtype="bfloat16",
        num_threads=2,
        max_model_len=1000,
        block_size=16,
        num_kv_blocks=250,
        kv_cache_bytes=64 * 2**20,
        weight_bytes=256 * 2**20,
        speculation="auto",
        draft_model="small",
    )
    model = replace(served_model(engine), description="llama, 134.5M parameters")
    console = Console(file=io.StringIO(), width=200)
    print_banner(console, model, "http://127.0.0.1:8000", needs_key=True)
    shown = console.file.getvalue()
    for part in (
        "fake",
        "llama, 134.5M parameters",
        "bfloat16",
        "4,000 tokens",
        "4.0 requests of 1,000 tokens",
        "auto, draft model small: answers stay the same",
    ):
        assert part in shown
    (curl,) = [line for line in shown.splitlines() if line.startswith("curl ")]
    assert "http://127.0.0.1:8000/v1/completions" in curl
    assert "Authorization: Bearer $KEY" in curl
