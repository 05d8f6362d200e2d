"""project: a linear layer of any number of rows, in which a row's bits do not depend on the others."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from engine.kernels.cuda.blas import LibraryCall, Product, library_product
from engine.kernels.cuda.epilogue import finish_launch
from engine.kernels.cuda.few_rows import few_rows_launch
from engine.kernels.cuda.kernel_launch import KernelLaunch, distinct_variants
from engine.kernels.cuda.many_rows import many_rows_launch
from engine.kernels.cuda.norm import normalise_launch
from engine.kernels.cuda.projection_layer import NormWeights, Projection, ProjectionUse
from engine.kernels.cuda.projection_workspace import FEW_ROWS, ProjectionWorkspace, library_may_serve
from engine.kernels.cuda.variants import Variant


def project(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    *,
    residual: Tensor | None = None,
    exact_library: bool = False,
    dependent: bool = False,
) -> None:
    """Compute out [M, N] = f(x [M, K]) (+ residual [M, N]), all contiguous; `out` may be `residual`, not `x`.

    `exact_library`: many rows of this layer may be multiplied by cuBLASLt (NumericsReport says so).
    `dependent`: a kernel of few rows starts while the one before still runs (programmatic dependent launch).
    """
    library = library_product if exact_library else None
    for step in plan(projection, x, out, workspace, residual=residual, library=library, dependent=dependent):
        step.run()


def normalize(x: Tensor, norm: NormWeights, out: Tensor) -> None:
    """Apply a norm to rows [M, K], contiguous, with the bits that project() gives them."""
    normalise_launch(norm, x, out).run()


def plan(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    *,
    residual: Tensor | None = None,
    library: Product | None = None,
    dependent: bool = False,
) -> list[KernelLaunch | LibraryCall]:
    """Return the launches of project(), with `library` for the products that it may serve."""
    _check(projection, x, out, workspace, residual)
    if len(x) <= FEW_ROWS:
        return [few_rows_launch(projection, x, out, workspace, residual, dependent=dependent)]
    steps: list[KernelLaunch | LibraryCall] = []
    if projection.norm is not None:
        normalised = workspace.normalised(*x.shape)
        steps.append(normalise_launch(projection.norm, x, normalised))
        x = normalised
    if library is not None and library_may_serve(projection):
        return steps + _by_library(projection, x, out, workspace, residual, library)
    if not projection.is_gated:
        return [*steps, many_rows_launch(projection, x, out, workspace, residual)]
    raw = workspace.raw(len(x), projection.weight.shape[0])
    product = many_rows_launch(projection, x, raw, workspace, None)
    return [*steps, product, finish_launch(projection, raw, out, residual)]


def _by_library(
    projection: Projection,
    x: Tensor,
    out: Tensor,
    workspace: ProjectionWorkspace,
    residual: Tensor | None,
    library: Product,
) -> list[KernelLaunch | LibraryCall]:
    follows = (projection.bias, projection.activation, residual)
    if not projection.is_gated and all(part is None for part in follows):
        return [LibraryCall(library, x, projection.weight, out)]
    raw = workspace.raw(len(x), projection.weight.shape[0])
    product = LibraryCall(library, x, projection.weight, raw)
    return [product, finish_launch(projection, raw, out, residual)]


def _check(
    projection: Projection, x: Tensor, out: Tensor, workspace: ProjectionWorkspace, residual: Tensor | None
) -> None:
    """Raise ValueError for tensors that kernels would read or write past: they check nothing themselves."""
    num_rows = len(x)
    expected = (num_rows, projection.num_columns)
    if x.shape != (num_rows, projection.depth) or out.shape != expected:
        raise ValueError(
            f"projection of {tuple(projection.weight.shape)}: {tuple(x.shape)} to {tuple(out.shape)}"
        )
    if residual is not None and residual.shape != expected:
        raise ValueError(f"the residual must be {expected}, got {tuple(residual.shape)}")
    if not 1 <= num_rows <= workspace.max_rows:
        raise ValueError(f"the workspace has room for 1 to {workspace.max_rows} rows, got {num_rows}")
    if not all(t.is_contiguous() for t in (x, out, projection.weight, residual) if t is not None):
        raise ValueError("the tensors of a projection must be contiguous")


def variants(
    uses: Iterable[ProjectionUse], workspace: ProjectionWorkspace, *, dependent: bool = False
) -> Iterator[Variant]:
    """Yield what project() compiles for these uses and up to the workspace's rows, each variant once.

    Weights and workspace may lie on the meta device.
    """
    return distinct_variants(_launches(uses, workspace, dependent=dependent))


def _launches(
    uses: Iterable[ProjectionUse], workspace: ProjectionWorkspace, *, dependent: bool
) -> Iterator[KernelLaunch]:
    for projection, has_residual in uses:
        weight = projection.weight
        for num_rows in row_buckets(workspace.max_rows):
            x = weight.new_empty(num_rows, projection.depth)
            out = weight.new_empty(num_rows, projection.num_columns, dtype=projection.out_dtype)
            for library in (None, library_product):
                steps = plan(
                    projection,
                    x,
                    out,
                    workspace,
                    residual=out if has_residual else None,
                    library=library,
                    dependent=dependent,
                )
                yield from (step for step in steps if isinstance(step, KernelLaunch))


def row_buckets(max_rows: int) -> list[int]:
    """Return numbers of rows among which every choice that project() makes by that number occurs."""
    powers = [1 << power for power in range(max_rows.bit_length())]
    return sorted({*powers, max_rows})
