"""Constrained decoding: which tokens may come next so that the answer matches a grammar.

    GrammarSpec -> GrammarCompiler.compile -> Grammar (shared, cached) -> start() -> GrammarState (one answer)

The work is llguidance's: derivatives of regular expressions as the lexer, Earley as the parser, one walk
over the trie of the vocabulary per mask.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.sampling.grammar_library import DEAD_END, describe
from engine.sampling.number_bound import DigitTokens, NumberPlace

if TYPE_CHECKING:
    from llguidance import LLMatcher

Words: TypeAlias = npt.NDArray[np.uint32]
"""One bit per token, the lowest bit first."""


@dataclass(frozen=True, kw_only=True)
class GrammarTokens:
    """What a state must know of the vocabulary."""

    num_tokens: int
    token_bytes: Sequence[bytes]
    digits: DigitTokens
    end_token_ids: frozenset[int]
    text_words: Words  # the tokens that may come at all: no special or end token, no token without bytes


class Grammar:
    """A compiled grammar, from which any thread may start answers; all share the table of its lexer."""

    def __init__(
        self, new_matcher: "Callable[[], LLMatcher]", tokens: GrammarTokens, *, bounds_numbers: bool = False
    ) -> None:
        self._new_matcher = new_matcher
        self._tokens = tokens
        self._bounds_numbers = bounds_numbers
        self._lock = threading.Lock()
        self._initial: LLMatcher | None = None

    def start(self) -> "GrammarState":
        """Return the state before the first token."""
        with self._lock:
            if self._initial is None:
                self._initial = self._new_matcher()
            place = NumberPlace() if self._bounds_numbers else None
            return GrammarState(self, self._tokens, self._initial.deep_copy(), place)

    def replay(self, token_ids: Sequence[int]) -> "LLMatcher | None":
        """Return a matcher after these tokens, with a lexer of its own; None when it fails again.

        The table that it replaces is full, so answers to come get a new one as well.
        """
        with self._lock:
            self._initial = None
        matcher = self._new_matcher()
        return None if matcher.is_error() or not matcher.consume_tokens(list(token_ids)) else matcher


class GrammarState:
    """Where one answer stands in its grammar; belongs to one thread.

    There is always something to choose: where neither a token nor the end is allowed (the vocabulary lacks
    a byte, a limit of the library tripped, a token came that was not allowed), `error` says so, and only
    end tokens are allowed from there. A vocabulary without end tokens leaves the end to the caller: it
    stops where `is_complete`.
    """

    def __init__(
        self, grammar: Grammar, tokens: GrammarTokens, matcher: "LLMatcher", place: NumberPlace | None
    ) -> None:
        self._grammar = grammar
        self._tokens = tokens
        self._matcher = matcher
        self._place = place  # where numbers are bounded
        self._token_ids: list[int] = []
        self._replayed_at = -1
        self._words: Words | None = None  # the text tokens allowed next, once they are known
        self._may_end = False  # known with _words
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """Why the answer had to end before it was complete."""
        return self._error

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end token may follow."""
        return not self._look().any()

    def token_bitmask(self) -> bytes | None:
        """Return a bit per token, the lowest of a byte first: 1 if it may come next.

        An end token is allowed exactly where the text so far is complete. Without end tokens any may come
        once the answer is complete: None.
        """
        words = self._look()
        end_token_ids = self._tokens.end_token_ids
        if not end_token_ids and not words.any():
            return None
        if self._may_end:
            words = words.copy()
            for token_id in end_token_ids:
                words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return words.tobytes()

    def allows(self, token_id: int) -> bool:
        """Return whether a token may come next."""
        words = self._look()
        if token_id in self._tokens.end_token_ids:
            return self._may_end
        return 0 <= token_id < self._tokens.num_tokens and bool(words[token_id >> 5] >> (token_id & 31) & 1)

    def accept(self, token_id: int) -> None:
        """Advance by a token that was allowed; an end token completes the answer."""
        if not self.allows(token_id):
            self._fail(f"token {token_id} came, which is not allowed there")
        elif token_id in self._tokens.end_token_ids:
            self._end()
        else:
            self._token_ids.append(token_id)
            self._words = None
            if self._place is not None:
                self._place.advance(self._tokens.token_bytes[token_id])
            if not self._matcher.consume_token(token_id) and not self._replay():
                self._fail(self._matcher.get_error())

    def forced_tokens(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that must come next, without an end token: nothing else is allowed.

        A vocabulary with many spellings of one text forces few tokens, even where it forces the text.
        """
        state, forced = self.copy(), list[int]()
        while len(forced) < limit and (token_id := state.only_token()) is not None:
            forced.append(token_id)
            state.accept(token_id)
        return forced

    def only_token(self) -> int | None:
        """Return the token that must come next; None where there are several or the answer may end."""
        words = self._look()
        positions = words.nonzero()[0]
        if self._may_end or len(positions) != 1:
            return None
        position = int(positions[0])
        word = int(words[position])
        return position * 32 + word.bit_length() - 1 if word & (word - 1) == 0 else None

    def copy(self) -> "GrammarState":
        """Return a state that goes its own way from here; costs microseconds."""
        place = None if self._place is None else self._place.copy()
        state = GrammarState(self._grammar, self._tokens, self._matcher.deep_copy(), place)
        state._token_ids = self._token_ids.copy()
        state._replayed_at = self._replayed_at
        state._words, state._may_end, state._error = self._words, self._may_end, self._error
        return state

    def _look(self) -> Words:
        if self._words is None:
            words = self._compute_mask()
            if self._matcher.is_error() and self._replay():
                words = self._compute_mask()
            if self._matcher.is_error():
                return self._fail(self._matcher.get_error())
            self._may_end = self._matcher.is_accepting()
            self._words = self._bound_number(words & self._tokens.text_words)
            if not self._may_end and not self._words.any():
                return self._fail(DEAD_END)
        return self._words

    def _bound_number(self, words: Words) -> Words:
        """Let a number that has its digits end, if it can."""
        num_left = None if self._place is None else self._place.num_digits_left
        if num_left is None:
            return words
        shorter = self._tokens.digits.without_more_than(num_left, words)
        return shorter if self._may_end or shorter.any() else words

    def _compute_mask(self) -> Words:
        words = np.empty_like(self._tokens.text_words)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)  # releases the GIL
        return words

    def _replay(self) -> bool:
        """Try once per position whether an error goes away with an empty lexer table."""
        if self._replayed_at == len(self._token_ids) or self._matcher.get_error().startswith(DEAD_END):
            return False
        self._replayed_at = len(self._token_ids)
        matcher = self._grammar.replay(self._token_ids)
        if matcher is None:
            return False
        self._matcher = matcher
        return True

    def _fail(self, reason: str) -> Words:
        if self._error is None:
            self._error = describe(reason)
        return self._end()

    def _end(self) -> Words:
        self._words, self._may_end = np.zeros_like(self._tokens.text_words), True
        return self._words


def token_words(bits: Sequence[bool]) -> Words:
    """Pack bits as the library does, whose vocabulary has one more token: its end token."""
    padded = np.zeros((len(bits) + 1 + 31) // 32 * 32, dtype=np.bool_)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.uint32)
