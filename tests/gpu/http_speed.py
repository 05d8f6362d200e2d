"""The real server on 127.0.0.1 under 64 streams, and what HTTP costs beside the engine alone.

    python -m tests.gpu.http_speed [--rehearse]

A random checkpoint of the 135M shape is written as a Hugging Face folder; the clients are a process of
their own (tests/gpu/http_client.py).
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch

from loadtest.server_process import end_servers_on_signals, running_draftline
from tests.gpu.checkpoints import random_checkpoint, save_llama
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part
from tests.gpu.shapes import LARGE, shrunk
from tests.ports import free_port


def http(setting: Setting, report: Report) -> None:
    """Write a checkpoint, serve it, and load it with streams."""
    config = shrunk(LARGE["135m"]) if setting.rehearse else LARGE["135m"]
    with tempfile.TemporaryDirectory(prefix="draftline-gpu-") as folder:
        model = Path(folder) / "model"
        save_llama(random_checkpoint(config, device=setting.device), model, torch.bfloat16)
        with running_draftline(str(model), free_port(), *_flags(setting)) as server:
            report.figure("server: from nothing to ready", server.start_seconds, "s")
            streams = setting.number(4, 64, 64)
            _load(setting, report, server.spec.base_url, streams=streams)
            _load(setting, report, server.spec.base_url, streams=1)
            _check_metrics(report, server.spec.base_url)


def _flags(setting: Setting) -> list[str]:
    if setting.rehearse:
        return ["--device", "cpu", "--kernels", "torch", "--kv-cache-memory", "16MiB", "--speculation", "off"]
    sizes = ["--max-num-seqs", "64", "--max-num-batched-tokens", "8192", "--max-model-len", "4096"]
    return ["--device", "cuda", "--speculation", "off", "--kv-cache-memory", "8GiB", *sizes]


def _load(setting: Setting, report: Report, url: str, *, streams: int) -> None:
    """Let each stream ask twice, the first time to warm up; the median of the rounds that count."""
    prompt, answer = setting.number(8, 128, 128), setting.number(8, 128, 256)
    command = [sys.executable, "-m", "tests.gpu.http_client", url, str(streams), str(prompt), str(answer)]
    rounds = setting.number(1, 2, 3)
    done = subprocess.run([*command, str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout)
    detail = f"first token after {found['ttft_ms']:.1f} ms, {found['tpot_ms']:.3f} ms a token (medians)"
    report.figure(f"HTTP, {streams} streams", found["tokens_per_second"], "tok/s", detail=detail)


def _check_metrics(report: Report, url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    report.check("the server counts what it served", "draftline_generation_tokens_total" in text)


if __name__ == "__main__":
    end_servers_on_signals()  # the part's time limit comes as SIGTERM
    sys.exit(run_part("http", http))
