"""AddedTokens: finds the tokens that are matched as whole texts, outside byte-pair encoding."""

import re
from collections.abc import Iterator, Mapping

_MAX_PREFIX = 3


class AddedTokens:
    """Cuts text at whole tokens: the leftmost first, of those at one place the longest."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = {token: token_id for token, token_id in token_ids.items() if token}
        self._lengths = sorted({len(token) for token in self._token_ids}, reverse=True)
        # Short prefixes are few even where tokens are thousands: scanning costs the same for any number.
        prefix = min(_MAX_PREFIX, *self._lengths) if self._lengths else 0
        prefixes = sorted({token[:prefix] for token in self._token_ids})
        self._start = re.compile("|".join(map(re.escape, prefixes)))

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text between added tokens as it is and each added token as its id, in order."""
        if not self._token_ids:
            yield text
            return
        begin = place = 0
        while (match := self._start.search(text, place)) is not None:
            place = match.start()
            token = self._longest_at(text, place)
            if token is None:
                place += 1
                continue
            if place > begin:
                yield text[begin:place]
            yield self._token_ids[token]
            begin = place = place + len(token)
        if begin < len(text):
            yield text[begin:]

    def find_all(self, text: str) -> Iterator[int]:
        """Yield every place where a token begins, those inside of others included."""
        place = 0
        while self._token_ids and (match := self._start.search(text, place)) is not None:
            if self._longest_at(text, match.start()) is not None:
                yield match.start()
            place = match.start() + 1

    def _longest_at(self, text: str, place: int) -> str | None:
        for length in self._lengths:
            token = text[place : place + length]
            if token in self._token_ids:
                return token
        return None
