"""Drafter: guesses the next tokens of running requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.core.request import Request
from engine.interface.speculation import DraftSource


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens, which may be none."""

    token_ids: tuple[int, ...]
    source: DraftSource
    match_length: int = 0  # how many of the latest tokens the guess is based on, for sources that look up

    def cut(self, num_tokens: int) -> "Draft":
        """Return the first tokens of the draft."""
        return Draft(self.token_ids[:num_tokens], self.source, self.match_length)


class Drafter(Protocol):
    """A source of drafts.

    Whatever it proposes, answers stay the same: a wrong guess costs time, a right one saves it. A new
    source needs these methods and a place in the list that Speculator is given.
    """

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> list[Draft]:
        """Guess up to limits[i] tokens that follow requests[i].token_ids, for all of them at once.

        Every request has all of its tokens but the last computed.
        """

    def finish(self, request: Request) -> None:
        """Learn from a request that has ended, and forget what was kept for it."""
