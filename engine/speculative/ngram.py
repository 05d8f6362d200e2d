"""N-gram drafts: what followed the latest tokens the last time they came, in the same request."""

from collections.abc import Sequence

from engine.core.request import Request
from engine.interface.speculation import DraftSource
from engine.speculative.drafter import Draft

NGRAM_SIZES = (5, 3, 2)
"""Lengths that are looked up, longest first: a longer match is right more often."""

MAX_MATCH_LENGTH = 32
"""How far back a match is followed to see how long it is."""

_MOST_CHANGES = 3  # in a row, after which the text has left what it copied
_SEARCH = 7  # tokens that may have been dropped

_NOTHING = Draft((), DraftSource.NGRAM)


class NgramIndex:
    """Where each n-gram of a growing sequence last came; adding a token costs one entry for each size."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def update(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens that are new. The last n-gram stays out: nothing has followed it yet."""
        for end in range(max(1, self._num_indexed), len(token_ids)):
            for size in NGRAM_SIZES:
                if size <= end:
                    self._followers[tuple(token_ids[end - size : end])] = end
        self._num_indexed = len(token_ids)

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Return the position after the latest place where the sequence's last n-gram came before."""
        for size in NGRAM_SIZES:
            position = self._followers.get(tuple(token_ids[-size:]))
            if position is not None:
                return position
        return None


class CopyCursor:
    """Where the text that is being copied stood last, to go on there after a change that no n-gram spans.

    An answer that corrects its prompt replaces, drops or adds a word and goes on as before.
    """

    def __init__(self) -> None:
        self._position = self._num_tokens = 0
        self._num_changes = _MOST_CHANGES

    def follow(self, position: int, num_tokens: int) -> None:
        """Note that token `num_tokens` of the text should be the one at `position`."""
        self._position, self._num_tokens, self._num_changes = position, num_tokens, 0

    def resume(self, token_ids: Sequence[int]) -> int | None:
        """Return the position that should follow the last token, which came as a surprise."""
        num_new = len(token_ids) - self._num_tokens
        if self._num_changes >= _MOST_CHANGES or num_new > MAX_MATCH_LENGTH:
            return None
        position = self._position + num_new  # one word for another
        for place in range(position - 1, min(position + _SEARCH, len(token_ids) - 1)):
            if token_ids[place] == token_ids[-1]:  # a few were dropped
                position = place + 1
                break
        self._position, self._num_tokens = position, len(token_ids)
        self._num_changes += 1
        return position


class NgramDrafter:
    """Prompt lookup over each request's prediction, prompt and answer (the method of arXiv 2304.04487)."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[NgramIndex, CopyCursor]] = {}

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """Guess what followed the longest earlier match."""
        return [self._propose(request, limit) for request, limit in zip(requests, limits, strict=True)]

    def finish(self, request: Request) -> None:
        """Forget the request's index."""
        self._known.pop(request.request_id, None)

    def _propose(self, request: Request, limit: int) -> Draft:
        known = self._known.get(request.request_id)
        if known is None:
            known = self._known[request.request_id] = NgramIndex(), CopyCursor()
        index, cursor = known
        # A prediction is looked up like a text before the prompt.
        token_ids = [*request.prediction, *request.token_ids] if request.prediction else request.token_ids
        index.update(token_ids)
        position = _begun(request) or index.find(token_ids)
        if position is not None:
            cursor.follow(position, len(token_ids))
            length = match_length(token_ids, token_ids, position)
        else:
            position, length = cursor.resume(token_ids), 1
        if position is None:
            return _NOTHING
        return Draft(continuation(token_ids, position, limit), DraftSource.NGRAM, length)


def _begun(request: Request) -> int | None:
    """Return where an answer stands in its prediction that is too short for an n-gram; None otherwise."""
    num_tokens = request.num_output_tokens
    if not request.prediction or not 0 < num_tokens < NGRAM_SIZES[0]:
        return None
    answer = tuple(request.token_ids[request.num_prompt_tokens :])
    return num_tokens if answer == request.prediction[:num_tokens] else None


def continuation(token_ids: Sequence[int], position: int, limit: int) -> tuple[int, ...]:
    """Return `limit` tokens from `position` on; past the end the same stretch goes on repeating."""
    period = len(token_ids) - position
    return tuple([token_ids[position + offset % period] for offset in range(limit)])


def match_length(token_ids: Sequence[int], source: Sequence[int], position: int) -> int:
    """Count how many of the last tokens equal those that end before `position` of the source."""
    length, limit = 0, min(MAX_MATCH_LENGTH, position, len(token_ids))
    while length < limit and token_ids[-1 - length] == source[position - 1 - length]:
        length += 1
    return length
