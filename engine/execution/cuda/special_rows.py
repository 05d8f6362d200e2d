"""Rows that the captured choice of tokens does not do alone; which way a row goes depends on it alone.

Adjusted rows have their logits changed by one more kernel before the choice: penalties, bias, bans and
grammars. Rows in torch want logprobs that the kernels do not find; their tokens are chosen there too.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.execution.cuda.results import MAX_DEVICE_LOGPROBS
from engine.interface.outputs import TokenLogprobs
from engine.interface.sampled_row import SampledRow
from engine.sampling.row_processors import needs_processing
from engine.sampling.sampler import Sampler


def is_adjusted(row: SampledRow) -> bool:
    """Tell whether the kernels change a row's logits before its token is chosen."""
    return needs_processing(row) and not is_in_torch(row)


def is_in_torch(row: SampledRow) -> bool:
    """Tell whether a row's token is chosen in torch, for the sake of its logprobs."""
    params = row.params
    if params.logprobs is None:
        return False
    is_wide = params.logprobs > MAX_DEVICE_LOGPROBS or params.all_logprobs or params.processed_logprobs
    return is_wide or needs_processing(row)  # the raw logits are gone after an adjustment


def is_special(row: SampledRow) -> bool:
    """Tell whether a row is one of either kind."""
    return is_in_torch(row) or needs_processing(row)


def choose_in_torch(
    logits: Tensor, rows: Sequence[SampledRow], numbers: Sequence[int], sampler: Sampler
) -> dict[int, tuple[int, TokenLogprobs | None]]:
    """Return token and logprobs of the numbered rows.

    One at a time: sums over several rows of a matrix may run in another order than over one.
    """
    chosen = {}
    for number in numbers:
        row_logits = logits[number : number + 1].clone()  # which the sampler may overwrite
        [token_id], [logprobs] = sampler.choose_with_logprobs(row_logits, [rows[number]])
        chosen[number] = (token_id, logprobs)
    return chosen
