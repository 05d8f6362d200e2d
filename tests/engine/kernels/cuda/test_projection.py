"""Projections in Triton's interpreter against their twin, at the edges of rows, columns, K and pieces."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.kernel_launch import KernelLaunch
from engine.kernels.cuda.projection import plan, project
from engine.kernels.cuda.projection_layer import cut_depth, num_pieces
from engine.kernels.cuda.projection_workspace import ProjectionWorkspace
from engine.kernels.cuda.twins.projection import project as twin
from tests.engine.kernels.cuda.projection_cases import CPU, assert_agrees, random_projection, random_rows, run

DTYPES = [torch.float16, torch.float32]
FORMS = {
    "qkv": {"norm": "rms", "bias": True},
    "o": {},
    "gated": {"norm": "rms", "gated": True, "activation": Activation.SILU},
    "gated with bias": {"norm": "rms", "gated": True, "bias": True, "activation": Activation.GELU_TANH},
    "plain": {"norm": "layer", "bias": True, "activation": Activation.GELU},
    "plain tanh": {"norm": "layer", "bias": True, "activation": Activation.GELU_TANH},
    "logits": {"norm": "rms", "out_dtype": torch.float32},
}


def check(projection, num_rows, *, residual=False, workspace=None):
    x = random_rows(num_rows, projection.depth, projection.weight.dtype)
    beside = random_rows(num_rows, projection.num_columns, projection.out_dtype, seed=2) if residual else None
    actual = run(project, projection, x, residual=beside, workspace=workspace)
    assert_agrees(actual, run(twin, projection, x, residual=beside))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_rows", [3, 33])
def test_every_form_agrees_with_its_twin(form, num_rows, dtype):
    projection = random_projection(40, 100, dtype, **FORMS[form])
    check(projection, num_rows, residual=form in ("o", "gated"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 16, 17, 32, 36])
def test_row_tiles_are_ragged(num_rows, dtype):
    check(random_projection(17, 72, dtype, norm="rms"), num_rows, residual=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [2, 34])
@pytest.mark.parametrize("depth", [64, 576, 769, 1025, 1088])
def test_pieces_and_their_edges(depth, num_rows, dtype):
    check(random_projection(35, depth, dtype), num_rows, residual=True)
    if num_rows < 32:
        check(
            random_projection(35, depth, dtype, gated=True, norm="layer", activation=Activation.SILU),
            num_rows,
        )


@pytest.mark.parametrize("form", ["qkv", "gated"])
def test_pointers_serve_where_descriptors_do_not(form):
    projection = random_projection(70, 72, **FORMS[form])
    workspace = ProjectionWorkspace(34, [projection], CPU, has_descriptors=False)
    check(projection, 34, workspace=workspace)
    with_descriptors = run(project, projection, random_rows(34, 72))
    assert torch.equal(with_descriptors, run(project, projection, random_rows(34, 72), workspace=workspace))


@pytest.mark.parametrize("form", ["qkv", "gated with bias", "plain", "o"])
def test_a_librarys_product_gets_the_same_epilogue(form):
    projection = random_projection(40, 128, **FORMS[form])
    x, beside = random_rows(40, 128), random_rows(40, 40, seed=2)
    actual = run(project, projection, x, residual=beside, exact_library=True)
    assert_agrees(actual, run(twin, projection, x, residual=beside))


@settings(max_examples=12, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    num_columns=st.integers(1, 70),
    depth=st.integers(1, 300),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from(DTYPES),
    residual=st.booleans(),
)
def test_any_shape_agrees_with_its_twin(num_rows, num_columns, depth, form, dtype, residual):
    projection = random_projection(num_columns, depth, dtype, **FORMS[form])
    x = random_rows(num_rows, depth, dtype)
    beside = random_rows(num_rows, num_columns, projection.out_dtype, seed=2) if residual else None
    actual = run(project, projection, x, residual=beside).float()
    expected = run(twin, projection, x, residual=beside).float()
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def whole_numbers(num_rows, depth, dtype, seed=0):
    """Rows whose products with each other are exact in float32, in whatever order they are added."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (num_rows, depth), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [200, 1088])
def test_a_row_has_the_same_bits_at_every_number_of_rows(depth, dtype):
    """The interpreter may add in another order for other tiles; of whole numbers every order is the same."""
    projection = random_projection(20, depth, dtype, bias=True, activation=Activation.GELU)
    projection = dataclasses.replace(projection, weight=whole_numbers(20, depth, dtype))
    x = whole_numbers(70, depth, dtype, seed=1)
    every = run(project, projection, x)
    for num_rows in (1, 5, 17, 32, 33, 64):
        assert torch.equal(run(project, projection, x[:num_rows]), every[:num_rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_pieces_in_their_own_programs_add_up_as_pieces_in_one(gated, dtype):
    """Pieces of very different size: another order of adding them would show."""
    activation = Activation.SILU if gated else None
    projection = random_projection(24, 1088, dtype, gated=gated, activation=activation)
    weight = whole_numbers(len(projection.weight), 1088, dtype)
    size = projection.cut.piece_size
    assert projection.cut.num_pieces == 4
    for piece, factor in enumerate((1 / 1024, 1024, -1024, 1 / 1024)):
        weight[:, piece * size : (piece + 1) * size] *= factor
    weight[:, 2 * size : 3 * size] = -weight[:, size : 2 * size]  # the large pieces cancel
    projection = dataclasses.replace(projection, weight=weight)
    x = whole_numbers(33, 1088, dtype, seed=1)
    x[:, 2 * size : 3 * size] = x[:, size : 2 * size]
    many = run(project, projection, x)
    assert torch.equal(run(project, projection, x[:32]), many[:32])
    if not gated:  # whose exp is another
        assert torch.equal(many, run(twin, projection, x))


@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize("num_rows", [4, 33])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_nan_reaches_no_other(form, num_rows):
    projection = random_projection(20, 72, **FORMS[form])
    x = random_rows(num_rows, 72)
    clean = run(project, projection, x)
    x[1] = torch.nan
    x[2, 0] = torch.inf
    broken = run(project, projection, x)
    others = [row for row in range(num_rows) if row not in (1, 2)]
    assert torch.equal(broken[others], clean[others])
    assert broken[1].isnan().all()


def test_what_lies_behind_the_rows_and_columns_is_not_read_into_them():
    """K = 100 and 3 rows lie in memory that goes on with NaN, as the rows of a larger buffer do."""
    projection = random_projection(20, 100, norm="rms")
    whole = torch.full((64, 100), torch.nan, dtype=torch.float16)
    whole[:3] = random_rows(3, 100)
    assert torch.equal(run(project, projection, whole[:3]), run(project, projection, whole[:3].clone()))


def test_the_output_may_be_the_residual():
    for num_rows in (3, 40):
        projection = random_projection(24, 600)
        x, beside = random_rows(num_rows, 600), random_rows(num_rows, 24, seed=2)
        expected = run(project, projection, x, residual=beside)
        workspace = ProjectionWorkspace(num_rows, [projection], CPU)
        project(projection, x, beside, workspace, residual=beside)
        assert torch.equal(beside, expected)


def test_the_cut_depends_on_the_shape_alone():
    assert [num_pieces(n, k) for n, k in [(960, 576), (576, 1536), (4096, 14336), (6144, 4096)]] == [
        2,
        4,
        4,
        1,
    ]
    for depth in (1, 63, 64, 65, 255, 511, 512, 576, 769, 1025, 14336):
        cut = cut_depth(64, depth)
        assert cut.piece_size % 64 == 0
        assert (cut.num_pieces - 1) * cut.piece_size < depth <= cut.num_pieces * cut.piece_size


def test_the_tile_of_many_rows_is_the_one_that_fills_a_card():
    projection = random_projection(4096, 64)
    workspace = ProjectionWorkspace(512, [projection], CPU)
    tiles = {}
    for num_rows in (64, 256, 512):
        (step,) = plan(projection, random_rows(num_rows, 64), random_rows(num_rows, 4096), workspace)
        assert isinstance(step, KernelLaunch)
        tiles[num_rows] = step.constants["ROWS"]
    assert tiles == {64: 64, 256: 64, 512: 128}


def test_the_large_tile_agrees_with_its_twin(monkeypatch):
    monkeypatch.setattr("engine.kernels.cuda.many_rows._FULL", 1)
    check(random_projection(150, 72), 130, residual=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": random_rows(3, 65)},
        {"out": random_rows(3, 9)},
        {"residual": random_rows(2, 8)},
        {"x": random_rows(64, 3).T[:, :64]},
        {"x": random_rows(6, 64), "out": random_rows(6, 8)},
        {"x": random_rows(0, 64), "out": random_rows(0, 8)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(wrong):
    projection = random_projection(8, 64)
    tensors = {"x": random_rows(3, 64), "out": random_rows(3, 8), "residual": None} | wrong
    with pytest.raises(ValueError):
        project(
            projection,
            tensors["x"],
            tensors["out"],
            ProjectionWorkspace(5, [projection], CPU),
            residual=tensors["residual"],
        )
