"""GrowingDraft: a draft of one request while the draft model makes it, token by token."""

from collections.abc import Sequence

from engine.core.executor import DraftJob
from engine.model.model_input import TokenSpan


class GrowingDraft:
    """One request's draft while it is made, and the tokens that the next pass reads for it."""

    def __init__(self, job: DraftJob) -> None:
        self.cursor = job.cursor
        self.length = job.length
        self._block_ids = job.block_ids
        self._end = job.first_position + len(job.token_ids)  # positions that the model has read, or reads now
        self.span = TokenSpan(job.token_ids, job.first_position, job.block_ids, int(job.length > 0))

    @property
    def can_be_chained(self) -> bool:
        """True where no row of the draft needs more than temperature, filters and noise."""
        return not self.cursor.looks_back and self.cursor.row.params.is_plain

    @property
    def num_missing(self) -> int:
        """How many tokens it lacks."""
        return self.length - len(self.cursor.draft_token_ids)

    def append_chain(self, token_ids: Sequence[int]) -> None:
        """Add tokens that were made in one go, each read to guess the next, up to one that ends the draft."""
        for count, token_id in enumerate(token_ids):
            self._end += count > 0
            self.cursor.append(token_id)
            if self.cursor.is_complete:
                return

    def feed_last(self) -> None:
        """Read the last token of the draft, to guess the one after it."""
        self.span = TokenSpan(self.cursor.draft_token_ids[-1:], self._end, self._block_ids, 1)
        self._end += 1

    @property
    def is_complete(self) -> bool:
        """True at its length, and after a token that would end the answer."""
        return len(self.cursor.draft_token_ids) >= self.length or self.cursor.is_complete
