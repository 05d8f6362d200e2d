"""The library's products and the check that trusts them, with scripted libraries of which some are wrong."""

import pytest
import torch

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda import numerics
from engine.kernels.cuda.blas import forbid_split_k, library_product
from engine.kernels.cuda.numerics import LayerKind, check_library, check_numerics
from engine.kernels.cuda.projection import plan
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from tests.engine.kernels.cuda.projection_cases import CPU, random_projection, random_rows

COUNTS = (1, 2, 33, 40)


def exact(x, weight, out):
    """Multiply with one rounding of a sum that is as good as exact."""
    out.copy_(torch.stack([weight.double() @ row for row in x.double()]))


def check(projections, library=exact, max_rows=40):
    workspace = ProjectionWorkspace(max_rows, projections, CPU)
    return check_numerics(projections, workspace, COUNTS, library=library)


def whole(projection):
    """Give the weight whole numbers: what other orders of adding change stays below a rounding to fp16."""
    projection.weight.copy_(torch.randint(-2, 3, projection.weight.shape))
    return projection


def test_an_exact_library_is_trusted_where_it_can_serve():
    wide, cut = random_projection(24, 64), random_projection(8, 576)
    single = random_projection(16, 64, torch.float32)
    report = check([whole(wide), whole(cut)], library_of_whole_numbers)
    assert report.level == "bitwise"
    assert report.reasons == ()
    assert report.may_use_library(wide)
    assert not report.may_use_library(cut)  # summed in pieces, as no library does
    assert not report.may_use_library(random_projection(25, 64))  # never checked
    assert not check([single]).may_use_library(single)


def library_of_whole_numbers(x, weight, out):
    """Multiply as the few rows do: in float32, K in ascending order."""
    torch.mm(x.float(), weight.float().T, out=(y := torch.empty(out.shape)))
    out.copy_(y)


@pytest.mark.parametrize("wrong_at", [33, 40])
@pytest.mark.parametrize("place", [(0, 0), (-1, -1)])
def test_one_other_bit_at_one_number_of_rows_is_enough_to_lose_trust(wrong_at, place):
    def faulty(x, weight, out):
        library_of_whole_numbers(x, weight, out)
        if len(x) == wrong_at:
            bits = out.view(torch.int16)
            bits[place] ^= 1

    projection = whole(random_projection(24, 64))
    report = check([projection], faulty)
    assert not report.may_use_library(projection)
    assert report.level == "bitwise"  # Triton's own products serve it


def test_a_library_that_refuses_is_not_trusted():
    def refuses(x, weight, out):
        raise RuntimeError("not supported")

    projection = whole(random_projection(24, 64))
    assert not check([projection], refuses).may_use_library(projection)


@pytest.mark.parametrize("wrong_at", [2, 33])
def test_a_layer_whose_own_kernels_differ_is_named(wrong_at, monkeypatch):
    """A cut that follows the number of rows, as split-K does."""

    def other_cut(projection, x, out, workspace, **options):
        steps = plan(projection, x, out, workspace, **options)
        if len(x) == wrong_at:
            out.fill_(0)
            return []
        return steps

    monkeypatch.setattr(numerics, "plan", other_cut)
    report = check([random_projection(24, 64)])
    assert report.level == "tolerance"
    assert report.reasons == (f"projection [24, 64] float16: other bits at {wrong_at} rows",)


def test_each_kind_of_layer_is_checked_once():
    calls = []

    def counted(x, weight, out):
        calls.append(tuple(weight.shape))
        library_of_whole_numbers(x, weight, out)

    gated = random_projection(12, 64, gated=True, activation=Activation.SILU)
    projections = [whole(random_projection(24, 64, seed=seed)) for seed in range(3)] + [whole(gated)]
    trusted = check_library(projections, ProjectionWorkspace(40, projections, CPU), COUNTS, library=counted)
    assert trusted == {LayerKind.of(projections[0]): True, LayerKind.of(gated): True}
    assert calls == [(24, 64)] * 4  # two kinds, at 33 and 40 rows: fewer never go to the library


def test_counts_above_the_workspaces_rows_are_left_out():
    projection = whole(random_projection(24, 64))
    assert check([projection], library_of_whole_numbers, max_rows=34).may_use_library(projection)


def test_the_library_multiplies():
    x, weight = random_rows(40, 64), random_rows(24, 64, seed=3)
    out = torch.empty(40, 24, dtype=torch.float16)
    library_product(x, weight, out)
    torch.testing.assert_close(out.float(), x.float() @ weight.float().T, rtol=2e-3, atol=2e-3)


def test_split_k_is_forbidden_after_the_library_that_can(monkeypatch):
    said = []

    class Matmul:
        def __setattr__(self, name, value):
            said.append((name, value))

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", said.append)
    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul())
    forbid_split_k()
    assert said[0] == "cublaslt"
    assert sorted(said[1:]) == [
        ("allow_bf16_reduced_precision_reduction", (False, False)),
        ("allow_fp16_reduced_precision_reduction", (False, False)),
    ]


def test_torch_takes_both_settings():
    matmul = torch.backends.cuda.matmul
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        before = getattr(matmul, name)
        setattr(matmul, name, (False, False))
        setattr(matmul, name, before)
