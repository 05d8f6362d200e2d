"""The n-gram pool: what followed the latest tokens in answers that ended earlier.

Scoped by tenant: how fast an answer comes tells what the pool holds, so a request looks only into answers
with the same root hash, which is derived from the tenant's salt.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.request import Request
from engine.interface.speculation import DraftSource, SpeculationMode
from engine.speculative.drafter import Draft
from engine.speculative.ngram import match_length

_SIZE = 4  # tokens that must match: shorter ones say little about another text
_CONTEXT = 8  # tokens of the prompt that are kept before an answer, so that its beginning is found too


_NOTHING = Draft((), DraftSource.NGRAM_POOL)


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """The end of a prompt and its answer."""

    scope: bytes
    token_ids: tuple[int, ...]


_Place = tuple[_Text, int]
"""An answer, and the position in it of the token that followed."""


class NgramPool:
    """Answers of finished requests, at most `max_tokens` of them; the oldest leave first."""

    def __init__(self, *, max_tokens: int = 100_000) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._texts: OrderedDict[int, _Text] = OrderedDict()
        self._places: dict[bytes, dict[tuple[int, ...], _Place]] = {}

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are kept; memory is proportional to it."""
        return self._num_tokens

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """Guess what followed the latest tokens in the newest answer that has them."""
        return [self._propose(request, limit) for request, limit in zip(requests, limits, strict=True)]

    def finish(self, request: Request) -> None:
        """Keep the answer, unless the request wanted nothing to do with speculation."""
        if request.speculation.mode is SpeculationMode.OFF or request.num_output_tokens < 2:
            return
        start = max(0, request.num_prompt_tokens - _CONTEXT)
        text = _Text(request.root_hash, tuple(request.token_ids[start:][: self._max_tokens]))
        self._texts[request.request_id] = text
        self._num_tokens += len(text.token_ids)
        places = self._places.setdefault(text.scope, {})
        for end in range(_SIZE, len(text.token_ids)):
            places[text.token_ids[end - _SIZE : end]] = (text, end)
        while self._num_tokens > self._max_tokens:
            self._forget_oldest()

    def _propose(self, request: Request, limit: int) -> Draft:
        places = self._places.get(request.root_hash)
        place = places.get(tuple(request.token_ids[-_SIZE:])) if places else None
        if place is None:
            return _NOTHING
        text, position = place
        return Draft(
            text.token_ids[position : position + limit],
            DraftSource.NGRAM_POOL,
            match_length(request.token_ids, text.token_ids, position),
        )

    def _forget_oldest(self) -> None:
        _, text = self._texts.popitem(last=False)
        self._num_tokens -= len(text.token_ids)
        places = self._places[text.scope]
        for end in range(_SIZE, len(text.token_ids)):
            ngram = text.token_ids[end - _SIZE : end]
            place = places.get(ngram)
            if place is not None and place[0] is text:
                del places[ngram]
        if not places:
            del self._places[text.scope]
