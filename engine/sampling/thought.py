"""ThoughtState: a thought of bounded length, before what a grammar says of the rest of an answer."""

from collections.abc import Sequence
from copy import copy
from typing import Protocol

from engine.interface.structural_tag import Thought


class State(Protocol):
    """Where the rest of an answer stands in its grammar."""

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end token may follow."""

    @property
    def error(self) -> str | None:
        """Why the answer had to end before it was complete."""

    def token_bitmask(self) -> bytes | None:
        """Return a bit per token; None: any may come."""

    def accept(self, token_id: int) -> None:
        """Advance by a token."""

    def allows(self, token_id: int) -> bool:
        """Tell whether a token may come next."""

    def copy(self) -> "State":
        """Return a state that goes its own way from here."""

    def forced_tokens(self, limit: int) -> list[int]:
        """Return tokens that must come next."""


class AnyText:
    """No grammar: any token may come at any time."""

    is_complete = False
    error = None

    def token_bitmask(self) -> None:
        """Return None: any token may come."""

    def accept(self, token_id: int) -> None:
        """Go on."""

    def allows(self, token_id: int) -> bool:  # noqa: ARG002 - as every state
        """Return True."""
        return True

    def copy(self) -> "AnyText":
        """Return the state itself, which never changes."""
        return self

    def forced_tokens(self, limit: int) -> list[int]:  # noqa: ARG002 - as every state
        """Return none."""
        return []


class ThoughtState:
    """A thought between two marks, then `rest`; belongs to one thread.

    The mark that begins it is forced. The thought is free until its end mark comes, in whatever tokens, or
    its `max_tokens` are used up: then what is left of the end mark is forced.
    """

    def __init__(
        self, thought: Thought, token_bytes: Sequence[bytes], rest: State, end_token_ids: frozenset[int]
    ) -> None:
        self._thought = thought
        self._token_bytes = token_bytes
        self._rest = rest
        self._refused = end_token_ids  # that would end the answer in its thought
        self._forced = thought.begin_token_ids
        self._is_ending = False  # the end mark is forced
        self._num_tokens = 0
        self._tail = b""  # the end of the thought, as long as a mark may begin there
        self._is_over = False
        if not self._forced:
            self._check_budget()

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end token may follow."""
        return self._is_over and self._rest.is_complete

    @property
    def error(self) -> str | None:
        """Why the answer had to end before it was complete."""
        return self._rest.error if self._is_over else None

    def token_bitmask(self) -> bytes | None:
        """Return a bit per token, the lowest of a byte first: 1 if it may come next. None: any may."""
        if self._is_over:
            return self._rest.token_bitmask()
        num_bytes = 4 * -(-len(self._token_bytes) // 32)
        if self._forced:
            return (1 << self._forced[0]).to_bytes(num_bytes, "little")
        if not self._refused:
            return None
        refused = sum(1 << token_id for token_id in self._refused)
        return ((1 << 8 * num_bytes) - 1 - refused).to_bytes(num_bytes, "little")

    def allows(self, token_id: int) -> bool:
        """Tell whether a token may come next."""
        if self._is_over:
            return self._rest.allows(token_id)
        return token_id == self._forced[0] if self._forced else token_id not in self._refused

    def accept(self, token_id: int) -> None:
        """Advance by a token that was allowed."""
        if self._is_over:
            self._rest.accept(token_id)
        elif self._forced:
            self._forced = self._forced[1:]
            if not self._forced:
                self._is_over = self._is_ending
                self._check_budget()
        else:
            self._think(token_id)

    def copy(self) -> "ThoughtState":
        """Return a state that goes its own way from here."""
        state = copy(self)
        state._rest = self._rest.copy()  # noqa: SLF001 - its own class
        return state

    def forced_tokens(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that must come next, without an end token."""
        return self._rest.forced_tokens(limit) if self._is_over else list(self._forced[:limit])

    def _think(self, token_id: int) -> None:
        self._num_tokens += 1
        mark = self._thought.end.encode()
        text = self._tail + (self._token_bytes[token_id] if token_id < len(self._token_bytes) else b"")
        if mark in text or self._thought.end_token_ids == (token_id,):
            self._is_over = True  # white space behind the mark, in its last token, stays before the rest
            return
        self._tail = text[-len(mark) + 1 :] if len(mark) > 1 else b""
        self._check_budget()

    def _check_budget(self) -> None:
        if self._is_over or self._num_tokens < self._thought.max_tokens:
            return
        mark = self._thought.end_token_ids
        written = next((n for n in range(len(mark), 0, -1) if self._ends_with(mark[:n])), 0)
        self._forced, self._is_ending = mark[written:], True

    def _ends_with(self, token_ids: Sequence[int]) -> bool:
        text = b"".join([self._token_bytes[token_id] for token_id in token_ids])
        return bool(text) and self._tail.endswith(text)


class ThoughtGrammar:
    """A thought, then what another grammar says; without one any text. Any thread may start answers.

    Where a grammar follows, no end token may come before it: what it promises would be missing.
    """

    def __init__(
        self,
        thought: Thought,
        token_bytes: Sequence[bytes],
        rest: "StartsStates | None",
        end_token_ids: frozenset[int],
    ) -> None:
        self._thought, self._token_bytes, self._rest = thought, token_bytes, rest
        self._end_token_ids = end_token_ids

    def start(self) -> ThoughtState:
        """Return the state before the first token."""
        if self._rest is None:
            return ThoughtState(self._thought, self._token_bytes, AnyText(), frozenset())
        return ThoughtState(self._thought, self._token_bytes, self._rest.start(), self._end_token_ids)


class StartsStates(Protocol):
    """A compiled grammar."""

    def start(self) -> State:
        """Return the state before the first token."""
