"""RequestState: what the device knows of each request from step to step, in one table of int32."""

import torch
from torch import Tensor

LAST_TOKEN = 0
NEXT_POSITION = 1  # of the token that runs next
TEMPERATURE = 2  # float bits; 0: greedy
TOP_K = 3  # 0: off
TOP_P = 4  # float bits; 1: off
MIN_P = 5  # float bits; 0: off
TYPICAL_P = 6  # float bits; 1: off
NOISE_LOW = 7  # with NOISE_HIGH the 64 bits that (seed, choice) are mixed to
NOISE_HIGH = 8
COUNT_ROW = 9  # of the table of token counts; -1: none
REPETITION_PENALTY = 10  # float bits, as the other two; read where there is a count row
FREQUENCY_PENALTY = 11
PRESENCE_PENALTY = 12
BLOCK_TABLE = 16  # the first of the columns that hold block ids

_ALIGNMENT = 4  # columns, so that a row begins at a multiple of 16 bytes


class RequestState:
    """A row of columns for each request, and one more for the null request that padding belongs to.

    `table` is int32 [max_requests + 1, width]; the null request's blocks all are the null block.
    """

    def __init__(self, *, max_requests: int, max_blocks: int, null_block: int, device: torch.device) -> None:
        self.null_request = max_requests
        self.max_blocks = max_blocks
        width = -(-(BLOCK_TABLE + max_blocks) // _ALIGNMENT) * _ALIGNMENT
        self.table = torch.zeros(max_requests + 1, width, dtype=torch.int32, device=device)
        self.table[:, COUNT_ROW] = -1
        self.table[self.null_request, BLOCK_TABLE:] = null_block

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.table.shape[1]

    def integers(self, column: int) -> Tensor:
        """Return a column as int32 [max_requests + 1]."""
        return self.table[:, column]

    def floats(self, column: int) -> Tensor:
        """Return a column that holds the bits of float32 [max_requests + 1]."""
        return self.table[:, column].view(torch.float32)

    @property
    def block_tables(self) -> Tensor:
        """The block ids, int32 [max_requests + 1, max_blocks]."""
        return self.table[:, BLOCK_TABLE : BLOCK_TABLE + self.max_blocks]
