"""Where the tokens of an answer came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draftline_client.types._record import Record


@dataclass(frozen=True, kw_only=True)
class TokenProvenance(Record):
    """Where one token of an answer came from."""

    source: str  # draft, ngram, grammar, bonus (after a draft that was right to its end) or target
    step: int  # of the server's engine


@dataclass(frozen=True, kw_only=True)
class ProvenanceSummary:
    """How many tokens of an answer came from where, and which came together.

    >>> tokens = [TokenProvenance(source=s, step=n) for s, n in [("target", 7), ("draft", 8), ("bonus", 8)]]
    >>> ProvenanceSummary.of(tokens)
    ProvenanceSummary(counts={'target': 1, 'draft': 1, 'bonus': 1}, step_starts=(0, 1))
    """

    counts: Mapping[str, int] = field(hash=False)  # tokens by source
    step_starts: tuple[int, ...]  # the index of the first token of each step of the engine

    @classmethod
    def of(cls, provenance: Sequence[TokenProvenance]) -> ProvenanceSummary:
        """Summarise the `provenance` of a choice, which a request has with `return_provenance`."""
        steps = [token.step for token in provenance]
        starts = [i for i, step in enumerate(steps) if i == 0 or step != steps[i - 1]]
        return cls(counts=dict(Counter(token.source for token in provenance)), step_starts=tuple(starts))
