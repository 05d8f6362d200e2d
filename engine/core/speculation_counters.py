"""SpeculationCounters: what all drafts came to."""

from engine.interface.speculation import MAX_DRAFT_TOKENS


class SpeculationCounters:
    """Totals since the start."""

    def __init__(self) -> None:
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.drafted_at = [0] * MAX_DRAFT_TOKENS  # by position in the draft
        self.accepted_at = [0] * MAX_DRAFT_TOKENS

    def count(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Count one verification."""
        self.num_drafts += 1
        self.num_draft_tokens += num_draft_tokens
        self.num_accepted_tokens += num_accepted_tokens
        for place in range(num_draft_tokens):
            self.drafted_at[place] += 1
            self.accepted_at[place] += place < num_accepted_tokens
