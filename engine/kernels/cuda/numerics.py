"""Whether a row's projection has the same bits at every number of rows on this card: found at start-up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engine.checkpoint.model_config import Activation
from engine.kernels.cuda.blas import Product, library_product
from engine.kernels.cuda.projection import plan
from engine.kernels.cuda.projection_layer import Projection
from engine.kernels.cuda.projection_workspace import FEW_ROWS, ProjectionWorkspace, library_may_serve

ROW_COUNTS = (1, 2, 16, 17, 33, 48, 64, 65, 96, 100, 128, 192, 256, 384, 512, 1000, 1024, 2048, 4096)
"""At and beside the edges of tiles, where libraries change their kernels."""

_MAX_OUTPUTS = 1 << 27  # elements of an output that a check may allocate
_SEED = 0


class LayerKind(NamedTuple):
    """What the kernels of a projection depend on; layers of one kind are checked once."""

    out_rows: int
    depth: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    norm: Literal["none", "rms", "layer"]
    has_bias: bool
    activation: Activation | None
    is_gated: bool

    @classmethod
    def of(cls, projection: Projection) -> "LayerKind":
        """Return a layer's kind."""
        norm = projection.norm
        return cls(
            out_rows=projection.weight.shape[0],
            depth=projection.depth,
            dtype=projection.weight.dtype,
            out_dtype=projection.out_dtype,
            norm="none" if norm is None else "rms" if norm.bias is None else "layer",
            has_bias=projection.bias is not None,
            activation=projection.activation,
            is_gated=projection.is_gated,
        )

    def __str__(self) -> str:
        """Name the kind in a reason."""
        return f"[{self.out_rows}, {self.depth}] {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class NumericsReport:
    """`bitwise`: a row's bits do not depend on the rows beside it; `tolerance`: reasons say where they do."""

    level: Literal["bitwise", "tolerance"]
    reasons: tuple[str, ...]
    exact_library: Mapping[LayerKind, bool]  # layers that cuBLASLt may multiply, many rows at a time

    def may_use_library(self, projection: Projection) -> bool:
        """Tell whether project() may be given `exact_library` for this layer."""
        return self.exact_library.get(LayerKind.of(projection), False)


def check_numerics(
    projections: Sequence[Projection],
    workspace: ProjectionWorkspace,
    row_counts: Sequence[int] = ROW_COUNTS,
    *,
    library: Product = library_product,
) -> NumericsReport:
    """Compare each kind of layer at several numbers of rows, by Triton and by the library, with few rows.

    Runs on the workspace's device with random inputs, and waits for it; takes scratch of the size of one
    layer's largest output, twice. The caller forbids split-K before.
    """
    reasons, exact = [], {}
    for kind, projection in {LayerKind.of(p): p for p in projections}.items():
        check = _Check(projection, workspace, row_counts)
        reasons += [f"projection {kind}: other bits at {n} rows" for n in check.differing(None)]
        exact[kind] = library_may_serve(projection) and _is_exact(check, library)
    return NumericsReport("tolerance" if reasons else "bitwise", tuple(reasons), exact)


def check_library(
    projections: Sequence[Projection],
    workspace: ProjectionWorkspace,
    row_counts: Sequence[int] = ROW_COUNTS,
    *,
    library: Product = library_product,
) -> Mapping[LayerKind, bool]:
    """Return for each kind of layer whether the library's products have the bits of this engine's own."""
    return check_numerics(projections, workspace, row_counts, library=library).exact_library


def _is_exact(check: "_Check", library: Product) -> bool:
    try:
        return not any(True for _ in check.differing(library))
    except (RuntimeError, TypeError):  # a product that this torch, library or card does not offer
        return False


class _Check:
    """The rows of one layer, FEW_ROWS at a time, and what other ways make of the same rows."""

    def __init__(self, projection: Projection, workspace: ProjectionWorkspace, counts: Sequence[int]) -> None:
        self._projection, self._workspace = projection, workspace
        most = min(workspace.max_rows, max(1, _MAX_OUTPUTS // projection.num_columns))
        self._counts = [count for count in counts if count <= most]
        weight = projection.weight
        size = (max(self._counts, default=1), projection.depth)
        generator = torch.Generator(weight.device).manual_seed(_SEED)
        self._x = torch.randn(size, generator=generator, device=weight.device).to(weight.dtype)
        starts = range(0, len(self._x), FEW_ROWS)
        self._expected = torch.cat([self._run(self._x[start : start + FEW_ROWS], None) for start in starts])

    def differing(self, library: Product | None) -> Iterator[int]:
        """Yield the numbers of rows at which an element differs; with a library, of those that it serves."""
        for count in self._counts:
            if library is not None and count <= FEW_ROWS:
                continue
            if not torch.equal(self._run(self._x[:count], library), self._expected[:count]):
                yield count

    def _run(self, x: Tensor, library: Product | None) -> Tensor:
        out = x.new_empty(len(x), self._projection.num_columns, dtype=self._projection.out_dtype)
        for step in plan(self._projection, x, out, self._workspace, library=library):
            step.run()
        return out
