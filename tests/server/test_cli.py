"""The command line: instant help, errors in one line, what the start-up prints."""

import io
import json
import shlex
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from engine.checkpoint import list_models
from engine.interface.info import EngineInfo
from server.cli import main
from server.commands.banner import Address, print_banner
from tests.fakes import FakeEngine
from tests.server.harness import served_model
from tests.terminal.pseudo_terminal import ROOT, PseudoTerminal

PAIR = ROOT / "tests/assets/pair"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "chat", "complete", "models", "bench"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["models"],
        ["models", "--verify"],
        *([command, "--help"] for command in ("serve", "chat", "complete", "models", "bench")),
        ["serve", "--model", "no-such-model"],
        ["chat", "--model", "no-such-model"],
        ["complete", "x", "--model", "no-such-model"],
        ["bench", "--model", "no-such-model"],
        ["chat", "--url", "http://127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_costs_no_import_of_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from server.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as left:\n    code = left.code\n"
        "assert not {'torch', 'fastapi', 'prompt_toolkit'} & {*sys.modules}\n"
        "sys.exit(code)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    is_wrong = "no-such-model" in arguments or "--url" in arguments
    assert finished.returncode == (2 if is_wrong else 0), finished.stderr
    assert "Traceback" not in finished.stderr


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
    [
        ["serve", "--port", "-1"],
        ["serve", "--port=0", "--model=no-such-model"],
        ["serve", "--port=0", "--draft-model=no-such-model"],
        ["serve", "--port=0", f"--model={__file__}"],
        ["chat", "--model=no.gguf"],
        ["chat", "--url=ftp://host"],
        ["complete", "x", "--model=/dev/null"],
        ["bench", "--model=hf:x"],
    ],
    ids=" ".join,
)
def test_an_error_is_one_line_and_code_2(arguments: list[str]) -> None:
    finished = run(*arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("serve", "--port", str(port))
    assert finished.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in finished.stderr


def test_models_shows_the_default_model_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    name, num_bytes, licence, state, path, description = line.split("\t")
    assert (name, num_bytes, licence) == ("smollm2-135m-instruct", "98362432", "Apache-2.0")
    assert state in ("cached", "not fetched")
    assert path.endswith(".gguf")
    assert "SmolLM2" in description


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["name"] == "smollm2-135m-instruct"
    assert model["size_bytes"] == 98362432


@pytest.mark.parametrize("columns", [10, 40, 80, 200])
def test_models_cuts_no_name_off_on_a_narrow_terminal(columns: int) -> None:
    arguments = ["-m", "server", "models"]
    with PseudoTerminal(arguments, columns=columns, environment={"TERM": "xterm"}) as terminal:
        assert terminal.wait() == 0
        shown = "".join(line.ljust(columns) for line in terminal.all_lines)
        assert "smollm2-135m-instruct" in shown
        assert "Apache-2.0" in shown
        assert "…" not in shown


def test_models_verify_says_what_is_damaged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [model] = list_models()
    for is_intact, word, code in ((True, "intact", 0), (False, "damaged", 1)):
        found = [(model.name, is_intact)]
        monkeypatch.setattr("engine.checkpoint.fetch.verify_models", lambda found=found: found)
        listing = [replace(model, is_cached=True)]
        monkeypatch.setattr("engine.checkpoint.registry.list_models", lambda listing=listing: listing)
        assert main(["models", "--verify"]) == code
        assert f"\t{word}\t" in capsys.readouterr().out


ENGINE_INFO = EngineInfo(
    device="cpu",
    dtype="as stored",
    kernels="avx512_bf16",
    kv_cache_dtype="bfloat16",
    num_threads=2,
    max_model_len=8192,
    block_size=16,
    num_kv_blocks=131072,
    kv_cache_bytes=64 * 2**30,
    weight_bytes=256 * 2**20,
    speculation="auto",
    draft_model="small",
)


def banner(address: Address, info: EngineInfo = ENGINE_INFO) -> str:
    engine = FakeEngine()
    engine.info = info
    model = served_model(engine, name="smollm2-135m-instruct")
    console = Console(file=io.StringIO(), width=80)
    print_banner(console, replace(model, description="llama, 134.5M parameters, stored as Q4_1"), address)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_banner_says_what_is_served_on_what() -> None:
    shown = banner(Address(url="http://127.0.0.1:8000"))
    for part in (
        "smollm2-135m-instruct  llama, 134.5M parameters",
        "kernels avx512_bf16",
        "as stored, 256 MiB",
        "bfloat16, 65,536 MiB: 2,097,152 tokens",
        "256.0 requests of 8,192 tokens",
        "numerics  bitwise: the same tokens alone and in any batch",
        "auto, draft model small: answers stay the same",
    ):
        assert part in shown


def test_the_banner_says_why_bits_may_differ() -> None:
    reason = "cuBLAS chooses its kernels by the number of rows"
    info = replace(ENGINE_INFO, device="NVIDIA H200", numerics="tolerance", numerics_reason=reason)
    shown = banner(Address(url="http://127.0.0.1:8000"), info)
    assert f"numerics  tolerance: {reason}\n" in shown
    assert "draft model small: the same up to rounding" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_banner_fits_80_columns_and_its_command_can_be_pasted(needs_key: bool) -> None:
    shown = banner(Address(url="http://127.0.0.1:65535", needs_key=needs_key))
    assert max(map(len, shown.splitlines())) <= 80
    command = shown[shown.index("curl ") :]
    words = shlex.split(command)  # as a shell reads it, lines that end with a backslash joined
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:65535/v1/completions"]
    assert ("Authorization: Bearer $KEY" in words) is needs_key
    assert json.loads(words[-1])["stream"] is True


def test_the_banner_with_a_unix_socket() -> None:
    shown = banner(Address(url="http://localhost", curl="curl --unix-socket /run/draftline.sock"))
    assert "curl --unix-socket /run/draftline.sock -N http://localhost/v1/completions" in shown


def test_bench_prints_what_it_measured_and_on_what() -> None:
    finished = run("bench", "--model", str(PAIR / "draft"), "--rounds", "1", "--kernels", "torch")
    assert finished.returncode == 0, finished.stderr
    for part in ("kernels torch", "no HTTP", "decode, 8 streams", "tok/s", "new", "cached", "memory limit"):
        assert part in finished.stdout
    assert finished.stderr == ""


def test_bench_as_json() -> None:
    finished = run("bench", "--json", "--model", str(PAIR / "draft"), "--rounds", "1", "--kernels", "torch")
    result = json.loads(finished.stdout)
    assert result["info"]["kernels"] == "torch"
    assert result["decode_tokens_per_second"]["1"] > 0
