"""SampledRow: all that choosing one token must know, by value."""

from typing import NamedTuple

from engine.interface.sampling_params import SamplingParams


class RowHistory(NamedTuple):
    """What the tokens before a row mean for its logits, where its parameters look back."""

    seen_token_ids: tuple[int, ...] = ()  # each token of prompt and answer once, for repetition_penalty
    answer_counts: tuple[tuple[int, int], ...] = ()  # (token id, how often in the answer)
    banned_token_ids: tuple[int, ...] = ()  # that may not come now
    token_bitmask: bytes | None = None  # of the grammar: one bit per token, the lowest bit of a byte first


class SampledRow(NamedTuple):
    """A place in an answer whose token is to be chosen: a request's next, or one after some drafts.

    A NamedTuple, as everything that is made for each request in each step: a frozen dataclass takes three
    times as long.
    """

    params: SamplingParams
    seed: int
    choice: int
    position: int  # tokens before it; also the position that noise is drawn for
    history: RowHistory | None = None
