"""Rows of requests: what choosing a request's next token, or one after drafts, must know."""

from collections import Counter
from collections.abc import Mapping, Sequence

from engine.core.request import Request
from engine.interface.sampled_row import RowHistory, SampledRow


def rows_of(request: Request, draft_token_ids: Sequence[int] = ()) -> tuple[SampledRow, ...]:
    """Return the row of the request's next token, then the row after each draft."""
    if not request.looks_back:
        params, seed, choice, position = request.params, request.seed, request.choice, request.num_tokens
        if not draft_token_ids:
            return (SampledRow(params, seed, choice, position),)
        return tuple(
            [SampledRow(params, seed, choice, position + i) for i in range(1 + len(draft_token_ids))]
        )
    cursor = RowCursor(request)
    rows = [cursor.row]
    for token_id in draft_token_ids:
        cursor.append(token_id)
        rows.append(cursor.row)
    return tuple(rows)


class RowCursor:
    """The request as it will be if its drafts are accepted, draft by draft."""

    def __init__(self, request: Request) -> None:
        self.looks_back = request.looks_back
        self._request = request
        self._state = request.grammar_state
        self.draft_token_ids: list[int] = []

    @property
    def request_id(self) -> int:
        """Whose rows these are."""
        return self._request.request_id

    @property
    def row(self) -> SampledRow:
        """What chooses the token after the drafts so far."""
        request, position = self._request, self._request.num_tokens + len(self.draft_token_ids)
        return SampledRow(request.params, request.seed, request.choice, position, self._history())

    def append(self, token_id: int) -> None:
        """Go on behind one more draft, which the grammar must allow."""
        if self._state is not None:
            if not self.draft_token_ids:  # up to here it was the request's own
                self._state = self._state.copy()
            self._state.accept(token_id)
        self.draft_token_ids.append(token_id)

    @property
    def is_complete(self) -> bool:
        """True when no token can follow the last draft: it ends the answer."""
        if self.draft_token_ids and self.draft_token_ids[-1] in self._request.stop_token_ids:
            return True
        return self._state is not None and self._state.is_complete

    def _history(self) -> RowHistory | None:
        """Return what the tokens so far mean for the row; None if nothing."""
        request = self._request
        if not request.looks_back:
            return None
        params, drafts = request.params, self.draft_token_ids
        seen: tuple[int, ...] = ()
        if params.repetition_penalty != 1.0:
            seen = tuple({*request.token_ids, *drafts})
        counts: Mapping[int, int] = {}
        if params.frequency_penalty or params.presence_penalty:
            counts = request.answer_counts + Counter(drafts) if drafts else request.answer_counts
        history = RowHistory(
            seen,
            tuple(counts.items()),
            _banned_tokens(request, drafts),
            None if self._state is None else self._state.token_bitmask(),
        )
        return history if any(history) else None


def _banned_tokens(request: Request, drafts: Sequence[int]) -> tuple[int, ...]:
    """Return the stop tokens before min_tokens, and every token that would end a banned sequence."""
    params, num_output_tokens = request.params, request.num_output_tokens + len(drafts)
    banned = set(request.stop_token_ids) if num_output_tokens < params.min_tokens else set()
    if params.banned_sequences:
        answer = [*request.token_ids[request.num_prompt_tokens :], *drafts]
        for *before, last in params.banned_sequences:
            if len(before) <= len(answer) and answer[len(answer) - len(before) :] == before:
                banned.add(last)
    return tuple(banned)
