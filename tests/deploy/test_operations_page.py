"""The operations page names only what exists, and its figure is the code's own."""

import re

import pytest
import torch

from engine.model.kv_storage import kv_bytes_per_block
from loadtest.environment import ROOT
from server.settings import ServeSettings

PAGE = (ROOT / "deploy" / "README.md").read_text()
OTHERS = {
    "--build",
    "--build-arg",
    "--read-only",
    "--tmpfs",
    "--cap-drop",
    "--gpus",
    "--headless",
    "--prometheus",
}


def flags_of_the_load_tests() -> set[str]:
    sources = [path.read_text() for path in (ROOT / "loadtest").rglob("*.py")]
    return {flag for source in sources for flag in re.findall(r'"(--[a-z][a-z0-9-]+)"', source)}


def test_every_flag_exists():
    served = {"--" + name.replace("_", "-") for name in ServeSettings.model_fields}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE))
    assert named - served - flags_of_the_load_tests() - OTHERS == set()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:loadtest|deploy)/[\w./]+\.\w+", PAGE))))
def test_every_file_exists(path):
    assert (ROOT / path).exists()


def test_the_figure_of_the_default_model(default_checkpoint):
    config = default_checkpoint.config
    per_token = kv_bytes_per_block(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_size=1,
        dtype=torch.bfloat16,
    )
    assert f"{per_token:,} bytes" in PAGE
    assert f"1 GiB holds {2**30 // per_token:,} tokens" in PAGE
