"""TORCH means the same in the Makefile and in the Dockerfile: a version, or a whole requirement."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHOICES = [
    ("2.13.0", "torch==2.13.0"),
    ("torch==2.13.0", "torch==2.13.0"),
    ("torch>=2.9,<3", "torch>=2.9,<3"),
]


def output(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("value", "requirement"), CHOICES)
def test_the_makefile(value, requirement):
    assert f'"{requirement}"' in output("make", "-n", "-B", "install", f"TORCH={value}")


@pytest.mark.parametrize(("value", "requirement"), CHOICES)
def test_the_dockerfile(value, requirement):
    choice = re.search(r'"\$\(case "\$\{TORCH\}".*esac\)"', (ROOT / "Dockerfile").read_text())
    assert output("sh", "-c", f"TORCH='{value}'; echo {choice[0]}").strip() == requirement
