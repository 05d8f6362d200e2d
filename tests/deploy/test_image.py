"""The Dockerfile: what each stage holds, and that the variants share all but what a GPU needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.environment import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = {
    name or "final": text
    for name, text in re.findall(
        r"^FROM \$?\S+(?: AS (\S+))?\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL
    )
}


def instructions(stage: str) -> str:
    """Return a stage without its comments."""
    return "\n".join(line for line in STAGES[stage].splitlines() if not line.startswith("#"))


def test_the_image_says_what_it_must():
    assert list(STAGES) == ["build", "runtime-cpu", "runtime-cuda", "final"]
    assert "g++" in STAGES["build"]
    for word in (
        "USER 10001:10001",
        "HEALTHCHECK",
        "STOPSIGNAL SIGTERM",
        "org.opencontainers.image.revision",
    ):
        assert word in STAGES["final"]
    for argument in ("TORCH", "TORCH_INDEX", "VARIANT", "MODEL"):
        assert f"ARG {argument}" in STAGES["build"]
    assert DOCKERFILE.startswith("#")
    assert "ARG BASE_IMAGE=python:3.11-slim\nARG VARIANT=cpu\n" in DOCKERFILE.partition("FROM ")[0]
    assert "FROM runtime-${VARIANT}\n" in DOCKERFILE


@pytest.mark.parametrize("stage", ["runtime-cpu", "final"])
def test_no_compiler_is_in_the_cpu_image(stage):
    for word in ("g++", "gcc", "apt-get", "pip install"):
        assert word not in instructions(stage)
    assert not instructions("runtime-cpu").strip()


def test_the_cuda_image_has_what_triton_runs_and_no_toolkit():
    stage = instructions("runtime-cuda")
    assert "gcc libc6-dev" in stage
    for word in ("g++", "nvcc", "nvidia-cuda-toolkit", "pip install"):
        assert word not in stage
    assert "TRITON_CACHE_DIR=/var/cache/draftline/triton" in stage
    assert "DRAFTLINE_CACHE_DIR=/var/cache/draftline\n" in STAGES["final"], "the same volume"


def test_the_headers_are_looked_for_where_python_has_them():
    [program] = re.findall(r"python3 -c '(import sysconfig; .*?)'\)", STAGES["runtime-cuda"])
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).name.startswith("python3")
