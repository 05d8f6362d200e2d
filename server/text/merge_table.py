"""MergeTable: byte-pair encoding spelled out, for what tiktoken cannot take and to check what it can."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from engine.interface.errors import CheckpointError

_MAX_SHOWN = 60


class Merge(NamedTuple):
    """What a pair of neighbours becomes; the lowest rank goes first."""

    rank: int
    token_id: int


class MergeTable:
    """The merges of a vocabulary, by token id.

    `token_ids` maps every token's text to its id. Raises CheckpointError for a merge whose parts or
    result are not tokens.
    """

    def __init__(self, token_ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self._merges: dict[tuple[int, int], Merge] = {}
        for rank, (left, right) in enumerate(merges):
            if left not in token_ids or right not in token_ids or left + right not in token_ids:
                raise CheckpointError(
                    f"merge {rank} of the vocabulary, {left[:_MAX_SHOWN]!r} with {right[:_MAX_SHOWN]!r}, has "
                    "a part or a result that is not a token"
                )
            pair = (token_ids[left], token_ids[right])
            self._merges.pop(pair, None)  # the last of equal pairs counts, and stands in its place
            self._merges[pair] = Merge(rank, token_ids[left + right])

    def encode(self, symbols: Sequence[int]) -> list[int]:
        """Merge the symbols of one piece, lowest rank first, leftmost first; O(n log n)."""
        return self._merge_all(symbols)[0]

    def formation_ranks(self, spelling: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """Return the rank of the merge that forms each token when its own bytes are encoded.

        `spelling` gives the byte symbols of each token whose bytes the vocabulary has. A token that its own
        bytes never become is absent; no text contains it, since what happens between two boundaries that
        last does not depend on what is outside them. The ranks therefore say all that the merges do.
        """
        if self._is_in_order():
            return self._formation_ranks_in_order(spelling)
        ranks = {}
        for token_id in dict.fromkeys(merge.token_id for merge in self._merges.values()):
            merged, last_rank = self._merge_all(spelling.get(token_id, ()))
            if merged == [token_id]:
                ranks[token_id] = last_rank
        return ranks

    def _merge_all(self, symbols: Sequence[int]) -> tuple[list[int], int]:
        """Return the merged symbols and the rank of the last merge (0 when there was none)."""
        tokens: list[int | None] = list(symbols)  # at the place of its first symbol; None: merged away
        after = list(range(1, len(tokens) + 1))
        before = list(range(-1, len(tokens) - 1))
        waiting = [
            (merge.rank, place, merge.token_id)
            for place, pair in enumerate(pairwise(symbols))
            if (merge := self._merges.get(pair)) is not None
        ]
        heapq.heapify(waiting)
        last_rank = 0
        while waiting:
            rank, place, token_id = heapq.heappop(waiting)
            if self._find(tokens, place, after[place]) != (rank, token_id):
                continue  # one of the two has been merged since
            last_rank = rank
            tokens[place], tokens[after[place]] = token_id, None
            after[place] = after[after[place]]
            if after[place] < len(tokens):
                before[after[place]] = place
            for left, right in ((before[place], place), (place, after[place])):
                if (merge := self._find(tokens, left, right)) is not None:
                    heapq.heappush(waiting, (merge.rank, left, merge.token_id))
        return [token for token in tokens if token is not None], last_rank

    def _find(self, tokens: Sequence[int | None], left: int, right: int) -> Merge | None:
        """Return the merge of the tokens at two neighbouring places, which may lie outside the piece."""
        if left < 0 or right >= len(tokens):
            return None
        left_token, right_token = tokens[left], tokens[right]
        if left_token is None or right_token is None:
            return None
        return self._merges.get((left_token, right_token))

    def _is_in_order(self) -> bool:
        """Tell whether no token is a part before its last merge, as trained vocabularies have it."""
        last = {merge.token_id: merge.rank for merge in self._merges.values()}
        return all(last.get(part, -1) < merge.rank for pair, merge in self._merges.items() for part in pair)

    def _formation_ranks_in_order(self, spelling: Mapping[int, Sequence[int]]) -> dict[int, int]:
        """Return the formation ranks by walking back each token's last merges; O(depth) a token."""
        ranks: dict[int, int] = {}
        parts: dict[int, tuple[int, int]] = {}
        for pair, merge in self._merges.items():
            exists = all(part in ranks or len(spelling.get(part, ())) == 1 for part in pair)
            if exists and merge.token_id not in ranks and self._meet(pair, ranks, parts):
                ranks[merge.token_id] = merge.rank
                parts[merge.token_id] = pair
        return ranks

    def _meet(
        self, pair: tuple[int, int], ranks: Mapping[int, int], parts: Mapping[int, tuple[int, int]]
    ) -> bool:
        """Tell whether both tokens form side by side, no merge across their border coming first.

        Goes back in time, undoing the later of the two tokens next to the border. The pair that then
        stands there would have merged, had its rank come before the merge that was undone; at equal ranks
        (three like symbols in a row) the merge further left comes first.
        """
        left, right = pair
        while left in ranks or right in ranks:
            left_rank, right_rank = ranks.get(left, -1), ranks.get(right, -1)
            if right_rank >= left_rank:
                right, limit = parts[right][0], right_rank + 1
            else:
                left, limit = parts[left][1], left_rank
            across = self._merges.get((left, right))
            if across is not None and across.rank < limit:
                return False
        return True
