"""ProjectionWorkspace: memory that projections write to and read again within one launch or the next."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.cuda.projection_layer import Projection

FEW_ROWS = 32
"""Up to so many rows one kernel does a projection; above, norm, product and gating each have one."""

MIN_COLUMN_TILE = 16  # of few rows: a counter for each tile of columns suffices at any choice of tiles
_HOPPER = 9  # the first compute capability whose copies go by descriptors


class ProjectionWorkspace:
    """Scratch for any of some projections of at most `max_rows` rows, one at a time.

    partials: float32, sums of pieces at few rows. counters: int32, pieces done of each column tile; 0 between
    launches. normalised: T, rows after their norm. raw: T, products before bias, activation and gating. A
    captured graph holds their addresses. `has_descriptors`: whether the card copies by descriptors (TMA).
    """

    def __init__(
        self,
        max_rows: int,
        projections: Sequence[Projection],
        device: torch.device,
        *,
        has_descriptors: bool | None = None,
    ) -> None:
        self.max_rows = max_rows
        self.has_descriptors = _has_descriptors(device) if has_descriptors is None else has_descriptors
        dtype = projections[0].weight.dtype
        cut = [p for p in projections if p.cut.num_pieces > 1]
        partials = max((p.cut.num_pieces * p.weight.shape[0] for p in cut), default=0)
        tiles = max((-(-p.num_columns // MIN_COLUMN_TILE) for p in cut), default=0)
        self.partials = torch.empty(partials * FEW_ROWS, dtype=torch.float32, device=device)
        self.counters = torch.zeros(tiles, dtype=torch.int32, device=device)
        depth = max((p.depth for p in projections if p.norm is not None), default=0)
        width = max((p.weight.shape[0] for p in projections if may_need_raw(p)), default=0)
        many = max_rows if max_rows > FEW_ROWS else 0
        self._normalised = torch.empty(max_rows * depth, dtype=dtype, device=device)
        self._raw = torch.empty(many * width, dtype=dtype, device=device)

    def normalised(self, num_rows: int, depth: int) -> Tensor:
        """Return room for rows after their norm, T [num_rows, depth]."""
        return self._normalised[: num_rows * depth].view(num_rows, depth)

    def raw(self, num_rows: int, out_rows: int) -> Tensor:
        """Return room for a product alone, T [num_rows, out_rows]."""
        return self._raw[: num_rows * out_rows].view(num_rows, out_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes that this takes of the device."""
        tensors = (self.partials, self.counters, self._normalised, self._raw)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def library_may_serve(projection: Projection) -> bool:
    """Tell whether a library's product can have this layer's bits: one piece, and no float32 products."""
    return projection.cut.num_pieces == 1 and projection.weight.dtype != torch.float32


def may_need_raw(projection: Projection) -> bool:
    """Tell whether many rows of this layer may go through `raw`: logits never do, their scratch is huge."""
    is_logits = projection.out_dtype != projection.weight.dtype
    return projection.is_gated or (library_may_serve(projection) and not is_logits)


def _has_descriptors(device: torch.device) -> bool:
    if device.type != "cuda":
        return True  # the interpreter has them
    return torch.cuda.get_device_capability(device)[0] >= _HOPPER
