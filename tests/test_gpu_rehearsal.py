"""The GPU checks, rehearsed on the CPU: a mistake in them must not cost time on a card."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.interface.outputs import TokenLogprobs
from engine.model.weights import Weights
from tests.gpu import summary
from tests.gpu.ceilings import Ceilings, decode_work, matrix_parameters, prefill_work
from tests.gpu.checkpoints import draft_of, random_checkpoint, save_llama
from tests.gpu.kernels import distance
from tests.gpu.quantised import quantised_checkpoint
from tests.gpu.report import Report
from tests.gpu.requests import Answer, differing, first_difference
from tests.gpu.shapes import LARGE, SMALL, shrunk
from tests.gpu.wiring import NotThereError
from tests.tiny import tensor_shapes

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PARTS = {"environment", "kernels", "tokens", "bits", "traps", "compile", "speed", "http"}


def run_all(folder, *flags):
    command = ["bash", ROOT / "tests/gpu/run_all.sh", "--rehearse", "--folder", folder, *flags]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(500)
def test_the_whole_run_rehearsed(tmp_path):
    done = run_all(tmp_path)
    logs = "".join(path.read_text()[-1500:] for path in tmp_path.glob("parts/*.log"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr + logs
    found = json.loads(done.stdout.splitlines()[-1])
    parts = {part["part"]: part for part in found["parts"]}
    assert parts.keys() == PARTS
    assert all(part["is_complete"] for part in parts.values())
    compared = [line["value"] for line in parts["tokens"]["lines"] if line["name"] == "answers compared"]
    assert len(compared) == 6
    assert sum(compared) > 500
    names = {line["name"] for line in parts["speed"]["lines"] if line["kind"] == "figure"}
    assert {"decode, batch 1", "HTTP, 4 streams"} <= names | {line["name"] for line in parts["http"]["lines"]}


def finished(folder, name, exit_code, *lines):
    """Write what a part leaves behind."""
    report = Report(name, folder)
    for line in lines:
        line(report)
    report.close()
    if exit_code is not None:
        (folder / f"{name}.code").write_text(str(exit_code))
    with (folder / "plan").open("a") as plan:
        plan.write(f"{name}\n")


def summarise(folder, monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["summary", str(folder), *flags])
    code = summary.main()
    text = capsys.readouterr().out
    return code, text, json.loads(text.splitlines()[-1])


@pytest.mark.parametrize(
    ("part", "exit_code", "flags", "status", "word"),
    [
        ("tokens-llama", 0, (), 0, "ok"),
        ("tokens-llama", 1, (), 1, "FAILED"),
        ("tokens-llama", 124, (), 1, "KILLED"),
        ("tokens-llama", None, (), 1, "LEFT OUT"),
        ("compile-8b", 1, (), 1, "FAILED"),
        ("speed-8b", 1, (), 0, "FAILED"),
        ("http", 137, (), 0, "KILLED"),
        ("http", 137, ("--rehearse",), 1, "KILLED"),
    ],
)
def test_what_makes_a_run_fail(part, exit_code, flags, status, word, tmp_path, monkeypatch, capsys):
    finished(tmp_path, "environment", 0)
    finished(tmp_path, part, exit_code)
    code, text, document = summarise(tmp_path, monkeypatch, capsys, *flags)
    assert code == status
    assert word in next(line for line in text.splitlines() if line.startswith(part))
    assert document["failed"] == ([] if word == "ok" else [part])


def test_the_table_has_what_is_not_right_and_every_figure(tmp_path, monkeypatch, capsys):
    finished(
        tmp_path,
        "bits",
        1,
        lambda report: report.check("a right one", True, "unseen"),
        lambda report: report.check("a wrong one", False, "3 of 9 differ"),
        lambda report: report.figure("decode", 1234.5678, "tok/s", share=0.5),
    )
    _, text, document = summarise(tmp_path, monkeypatch, capsys)
    assert "1/2 checks" in text
    table = text[text.index("\nbits") : text.index("FAILED: bits")]
    assert "unseen" not in table
    assert "WRONG    a wrong one  3 of 9 differ" in table
    assert "1234.6 tok/s" in table
    assert "50.0% of the limit" in table
    assert len(document["parts"][0]["lines"]) == 3


def test_an_exception_ends_its_section_alone_and_is_kept_at_once(tmp_path, capsys):
    report = Report("part", tmp_path)
    with report.section("first"):
        raise ValueError("no luck")
    with report.section("second"):
        raise NotThereError("no such module")
    report.check("third", True)
    kept = json.loads((tmp_path / "part.json").read_text())
    assert [line["kind"] for line in kept["lines"]] == ["error", "waiting", "check"]
    assert "no luck" in kept["lines"][0]["detail"]
    assert not kept["is_complete"]
    assert report.close() == 1
    assert Report("other", tmp_path).close() == 0


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_every_tensor_of_a_shape_is_there_and_drawn_anew_each_time(name):
    config = shrunk({**SMALL, **LARGE}[name])
    checkpoint = random_checkpoint(config, device=CPU)
    assert {key: stored.shape for key, stored in checkpoint.tensors.items()} == tensor_shapes(config)
    first, again = (checkpoint.tensors["embed_tokens.weight"].dequantize() for _ in range(2))
    assert torch.equal(first, again)
    noisy = draft_of(checkpoint, 0.01).tensors["embed_tokens.weight"].dequantize()
    assert 0 < (noisy - first).abs().max() < 0.1
    assert len(set(checkpoint.tokenizer.tokens)) == config.vocab_size


def test_a_saved_checkpoint_is_the_same_model(tmp_path):
    checkpoint = random_checkpoint(shrunk(LARGE["135m"]), device=CPU)
    save_llama(checkpoint, tmp_path, torch.float32)
    loaded = load_checkpoint(str(tmp_path))
    assert replace(loaded.config, rope=None) == replace(checkpoint.config, rope=None)
    assert loaded.tokenizer.tokens == checkpoint.tokenizer.tokens
    assert loaded.stop_token_ids == checkpoint.stop_token_ids
    for name, stored in checkpoint.tensors.items():
        assert torch.equal(loaded.tensors[name].dequantize(), stored.dequantize())


def test_blocks_of_a_quantised_checkpoint_are_numbers():
    config = replace(shrunk(LARGE["8b"]), hidden_size=64)
    tensors = quantised_checkpoint(config).tensors
    weights = Weights(tensors, dtype=torch.float32, device=CPU)
    up = weights.take("layers.0.mlp.up_proj.weight", config.intermediate_size, config.hidden_size)
    assert 0.01 < up.std() < 0.1
    assert tensors["norm.weight"].format == "F32"


def test_the_work_of_a_step_and_its_least_time():
    config = LARGE["8b"]
    assert matrix_parameters(config) == 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    one = decode_work(config, batch=1, context=0)
    assert one.num_bytes == 2 * (matrix_parameters(config) + 128_256 * 4096)
    assert one.num_flops == one.num_bytes
    long = decode_work(config, batch=2, context=1000)
    assert long.num_bytes - one.num_bytes == 2 * 1000 * 2 * 32 * 8 * 128 * 2
    ceilings = Ceilings(bytes_per_second=1e12, flops_per_second=1e12)
    assert ceilings.step_seconds(one) == one.num_bytes / 1e12
    assert ceilings.step_seconds(prefill_work(config, count=1, length=2048)) > 2048 * 6.9e9 * 2 / 1e12


def test_answers_are_compared_whole():
    answer = Answer((1, 2, 3), None, (), None)
    assert differing([answer], [answer]) == []
    other = answer._replace(token_ids=(1, 9, 3))
    assert differing([answer, other], [answer, answer]) == [1]
    assert first_difference(other, answer) == "token 1 is 9, alone 2"
    assert "token_ids" in first_difference(answer._replace(token_ids=(1,)), answer)
    scored = answer._replace(logprobs=(TokenLogprobs(1, -1.0, ((4, -0.5),)),))
    tied = answer._replace(logprobs=(TokenLogprobs(1, -1.0, ((7, -0.5),)),))
    apart = answer._replace(logprobs=(TokenLogprobs(1, -1.25, ((4, -0.5),)),))
    assert first_difference(tied, scored).startswith("logprobs 0: a tie, -1.0 ((7, -0.5),), alone")
    assert first_difference(apart, scored).startswith("logprobs 0: -1.25")
    assert first_difference(scored, answer) == "the number of logprobs"


def test_what_is_not_finite_is_far_from_everything():
    one = torch.ones(3)
    assert distance(one, one) == 0.0
    assert distance(torch.tensor([1.0, float("nan"), 1.0]), one) == float("inf")
    assert distance(one[:2], one) == float("inf")
    assert distance(one.int(), torch.tensor([1, 1, 2], dtype=torch.int32)) == 1.0
