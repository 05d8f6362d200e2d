"""StepBuffers: a step's input and output in tensors that stay where they are, for a captured graph."""

from typing import NamedTuple

import torch


class StepShape(NamedTuple):
    """How large a step's launches are, padding included: steps of one shape share a captured graph."""

    num_tokens: int
    num_tiles: int
    tile_tokens: int  # query tokens of a tile, at most; 1 where every request decodes
    num_rows: int  # places whose token is chosen


INBOX_UPDATES = 0  # how many updates of the table of requests the inbox holds
INBOX_HAS_REQUESTS = 1  # 1 where it names the requests of a decode step, else those of the last one stay
INBOX_UPDATES_START = 2  # where the updates begin: all offsets into the table, then all values
INBOX_HEADER = 4


class StepBuffers:
    """Tensors of int32, of which a step uses the first numbers that its shape says.

    token_ids, positions, token_requests [max_tokens]; a token that the step before is choosing is
    PENDING_TOKEN until begin_step() has put it in. tile_starts, tile_lengths [max_tiles]: first token and
    number of tokens, at least 1, of consecutive tokens of one request. row_tokens [max_rows]: the token whose
    hidden state chooses; row_requests, row_positions [max_rows]: whose noise, and that of which position.
    faults [max_tokens]: 1 where keys, values or logits are not finite. results: tokens of the rows, then
    faults of the tokens.

    inbox: what the host sends in one copy: a header, the arrays of a step in the order above, padded to its
    shape, and updates of the table of requests. decode_requests [max_rows]: those of the last decode step.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_tiles: int,
        max_rows: int,
        device: torch.device,
        max_updates: int = 0,
    ) -> None:
        self.max_tokens, self.max_tiles, self.max_rows = max_tokens, max_tiles, max_rows
        self.device = device

        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        self.token_ids, self.positions, self.token_requests = (zeros(max_tokens) for _ in range(3))
        self.tile_starts, self.tile_lengths = zeros(max_tiles), zeros(max_tiles)
        self.row_tokens, self.row_requests, self.row_positions = (zeros(max_rows) for _ in range(3))
        self.decode_requests = zeros(max_rows)
        self.faults = zeros(max_tokens)
        self.results = zeros(max_rows + max_tokens)
        arrays = 3 * max_tokens + 2 * max_tiles + 3 * max_rows
        self.inbox = zeros(INBOX_HEADER + arrays + 2 * max_updates)
