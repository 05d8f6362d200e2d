"""The same tests once more, as on a processor without AVX-512: torch and oneDNN take other ways there.

`make test-avx2` runs the whole suite so.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

from engine.model.linear import Linear, can_prepack, packed_dtype

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
HIDDEN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_WAIT_POLICY": "passive"}


def run(*arguments):
    environment = os.environ | HIDDEN
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_rows_have_the_same_bits_whatever_the_batch():
    files = ["test_elementwise.py", "test_linear.py", "test_attention.py"]
    done = run(
        "-m", "pytest", "-p", "no:cacheprovider", "-k", "same_bits", *(str(HERE / name) for name in files)
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_avx512_really_is_hidden():
    source = (
        "import torch; from engine.model.linear import can_prepack; "
        "print(torch.backends.cpu.get_cpu_capability(), *map(can_prepack, (torch.bfloat16, torch.float32)))"
    )
    assert run("-c", source).stdout.split() in (["AVX2", "False", "True"], ["DEFAULT", "False", "False"])


def test_bfloat16_is_widened_where_onednn_has_none(monkeypatch):
    monkeypatch.setattr("engine.model.linear.can_prepack", lambda dtype: dtype is torch.float32)
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).bfloat16() for shape in ((40, 64), (300, 64)))
    bias = torch.randn(40, generator=generator).bfloat16()
    assert packed_dtype(weight) is torch.float32
    linear = Linear(weight, bias)
    whole = linear(x)
    assert whole.dtype is torch.bfloat16
    exact = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(whole.double(), exact, atol=2e-2, rtol=1e-2)
    for rows in (1, 2, 3, 5, 33, 128):
        assert torch.equal(torch.cat([linear(part) for part in x.split(rows)]), whole)


def test_a_dtype_that_onednn_lacks_is_found_out_by_trying():
    assert not can_prepack(torch.float64)
    assert packed_dtype(torch.zeros(2, 2, dtype=torch.float16)) is None
