"""SamplingWorkspace: what the sampling kernels of a step hand each other."""

import torch

CHUNK = 4096
"""Tokens of a row that one program looks at; the cut depends on nothing else."""

MAX_TOPS = 20
"""How many of the likeliest tokens the kernels report at most."""

THRESHOLD_COLUMNS = 4
"""Of a row: the least logit kept, the highest logit, the mean distance from it, how far from that is kept."""


class SamplingWorkspace:
    """Tensors of static size, all written before they are read within a step.

    num_candidates, a power of two: how many values of a row the search for a threshold takes into registers.
    """

    def __init__(
        self, *, max_rows: int, vocab_size: int, device: torch.device, num_candidates: int = 2048
    ) -> None:
        assert num_candidates & (num_candidates - 1) == 0, "a block's size is a power of two"
        self.max_rows, self.vocab_size = max_rows, vocab_size
        self.num_chunks = -(-vocab_size // CHUNK)
        self.num_candidates = num_candidates

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.thresholds = floats(max_rows, THRESHOLD_COLUMNS)
        self.candidates = floats(max_rows, num_candidates)
        self.best = floats(max_rows, self.num_chunks)
        self.best_ids = integers(max_rows, self.num_chunks)  # -1: a logit there is broken
        self.is_adjusted = integers(max_rows)
        self.chunk_has_token = integers(max_rows, self.num_chunks)
        self.highest, self.sums = (floats(max_rows, self.num_chunks) for _ in range(2))
        self.top_values = floats(max_rows, self.num_chunks, MAX_TOPS)
        self.top_ids = integers(max_rows, self.num_chunks, MAX_TOPS)
