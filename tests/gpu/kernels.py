"""Each kernel against its twin in plain torch, on this device.

    python -m tests.gpu.kernels [--only products|attention|choosing|quantised] [--rehearse]

A case gives pairs of tensors and how far they may be apart, as a share of the larger values expected.
Integers must be equal. A rehearsal runs the kernels in Triton's interpreter.
"""

import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from tests.gpu import model_cases, quantised_cases, sampling_cases
from tests.gpu.cases import Case
from tests.gpu.report import Report
from tests.gpu.setting import Setting, run_part

Cases = Callable[[Setting], Iterator[Case]]

_GROUPS: Mapping[str, Mapping[str, Cases]] = {
    "products": {"projection": model_cases.projection_cases},
    "attention": {
        "embedding": model_cases.embedding_cases,
        "write_kv": model_cases.write_kv_cases,
        "attention": model_cases.attention_cases,
    },
    "choosing": {
        "sampling": sampling_cases.sampling_cases,
        "adjustments": sampling_cases.adjustment_cases,
        "logprobs": sampling_cases.logprob_cases,
        "acceptance": sampling_cases.acceptance_cases,
    },
    "quantised": {"quantised": quantised_cases.quantised_cases},
}


def kernels(setting: Setting, report: Report) -> None:
    """Run every case of a group, or of all."""
    for name in [setting.only] if setting.only else _GROUPS:
        for kernel, cases in _GROUPS[name].items():
            with report.section(kernel):
                for case in cases(setting):
                    full_name = f"{kernel}: {case.name}"
                    if setting.is_late:
                        report.late(full_name)
                        return
                    with report.section(full_name):
                        run_case(report, full_name, case)


def run_case(report: Report, name: str, case: Case) -> None:
    """Compare all pairs of a case; the worst is told."""
    apart = [distance(found, expected) for found, expected in case.pairs()]
    is_right = bool(apart) and all(one <= case.tolerance for one in apart)
    report.check(name, is_right, f"{max(apart, default=0.0):.2e} of {case.tolerance:.0e}")


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value expected; infinite where one is not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not found.is_floating_point():
        return float((found != expected).sum())
    if not found.numel():
        return 0.0
    apart = (found.double() - expected.double()).abs()
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((apart / scale).nan_to_num(nan=float("inf")).max())


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(run_part("kernels", kernels))
