"""Constrained decoding: which tokens may come next so that the answer matches a grammar.

    GrammarSpec -> GrammarCompiler.compile -> Grammar (shared, cached) -> start() -> GrammarState (one answer)

The work is llguidance's: derivatives of regular expressions as the lexer, Earley as the parser, one walk
over the trie of the vocabulary per mask.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.structural_tag import read_structural_tag
from engine.sampling.grammar_library import (
    DEAD_END,
    bounds_numbers,
    build_tokenizer,
    describe,
    library_grammar,
    named_token,
    new_matcher,
    refusal,
)
from engine.sampling.grammar_trial import TrialProcess
from engine.sampling.number_bound import DigitTokens, NumberPlace
from engine.sampling.thought import ThoughtGrammar, ThoughtState

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_Words: TypeAlias = npt.NDArray[np.uint32]
"""One bit per token, the lowest bit first."""


class CompiledGrammar(Protocol):
    """A grammar that answers can be started in."""

    def start(self) -> "GrammarState | ThoughtState":
        """Return the state before the first token."""


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """What a state must know of the vocabulary."""

    num_tokens: int
    token_bytes: Sequence[bytes]
    digits: DigitTokens
    end_token_ids: frozenset[int]
    text_words: _Words  # the tokens that may come at all: no special or end token, no token without bytes


class GrammarCompiler:
    """Compiles specs for one vocabulary and keeps the last `max_cached` grammars; safe to share.

    token_bytes: what each id adds to the text, b"" for nothing. An end token is one whose choice ends an
    answer; it and the special tokens never stand for their text, and come only where a structural tag names
    one by its id. Tokens with the byte 0xFF first, which no
    text has, never match.

    A schema, regular expression or grammar is compiled twice, first in a process that may crash or be
    killed after `deadline_seconds`. The library is imported, and the process started, when first needed.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        end_token_ids: frozenset[int],
        special_token_ids: frozenset[int],
        max_cached: int = 64,
        deadline_seconds: float = 5.0,
    ) -> None:
        silent = end_token_ids | special_token_ids
        self._token_bytes = [
            b"" if token_id in silent or text.startswith(b"\xff") else text
            for token_id, text in enumerate(token_bytes)
        ]
        self._tokens = _Tokens(
            num_tokens=len(token_bytes),
            token_bytes=self._token_bytes,
            digits=DigitTokens(self._token_bytes, _words),
            end_token_ids=end_token_ids,
            text_words=_words([bool(text) for text in self._token_bytes]),
        )
        self._max_cached = max_cached
        self._trial = TrialProcess(self._token_bytes, deadline_seconds=deadline_seconds)
        self._cache: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()

    def compile(self, spec: GrammarSpec, *, param: str = "response_format") -> CompiledGrammar:
        """Return the grammar of a spec; many callers at once do the work once.

        Takes milliseconds, at worst seconds: not for the event loop. Raises RequestError, which blames
        `param`, for a spec that is malformed, unsupported, impossible for this vocabulary or too complex.
        """
        with self._lock:
            future = self._cache.get(spec)
            is_mine = future is None
            if future is None:
                future = self._cache[spec] = Future()
            self._cache.move_to_end(spec)
            while len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        if is_mine:
            self._compile_into(future, spec)
        try:
            return future.result()
        except RequestError as error:
            raise RequestError(str(error), param=param) from None
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of the library, which looks like an exit
            raise RequestError(refusal(spec, f"panic: {error}"), param=param) from None

    def find(self, spec: GrammarSpec) -> CompiledGrammar | None:
        """Return the grammar of a spec that is compiled; takes no time."""
        with self._lock:
            future = self._cache.get(spec)
            if future is None or not future.done() or future.exception() is not None:
                return None
            self._cache.move_to_end(spec)
        return future.result()

    def close(self) -> None:
        """End the trial process; compiling starts it again."""
        self._trial.close()

    def _compile_into(self, future: "Future[CompiledGrammar]", spec: GrammarSpec) -> None:
        try:
            future.set_result(self._compile_any(spec))
        except BaseException as error:  # noqa: BLE001 - those who wait must not wait for ever
            with self._lock:
                if self._cache.get(spec) is future:
                    del self._cache[spec]
            future.set_exception(error)

    def _compile_any(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a grammar; the library has no part in a thought before it."""
        if spec.kind is not GrammarKind.STRUCTURAL_TAG:
            return self._compile(spec)
        try:
            tag = read_structural_tag(spec.source)
        except ValueError as error:
            raise RequestError(refusal(spec, str(error))) from None
        if tag.thought is None:
            return self._compile(spec)
        rest = self.compile(replace(tag, thought=None).spec()) if tag.is_constrained else None
        return ThoughtGrammar(tag.thought, self._token_bytes, rest, self._tokens.end_token_ids)

    def _compile(self, spec: GrammarSpec) -> "Grammar":
        grammar, tokens = library_grammar(spec), self._tokens_of(spec)
        if spec.kind not in (GrammarKind.JSON_OBJECT, GrammarKind.CHOICE):  # those two are always harmless
            self._trial.check(spec, grammar)
        tokenizer = self._get_tokenizer()
        compiled = Grammar(
            lambda: new_matcher(tokenizer, grammar, spec.kind),
            tokens,
            bounds_numbers=bounds_numbers(spec),
        )
        state = compiled.start()
        if state.is_complete and state.error is not None:
            raise RequestError(refusal(spec, state.error))
        return compiled

    def _tokens_of(self, spec: GrammarSpec) -> _Tokens:
        """Return the vocabulary, with the control token that a structural tag names."""
        token_id = named_token(spec)
        if token_id is None:
            return self._tokens
        if not 0 <= token_id < self._tokens.num_tokens or token_id in self._tokens.end_token_ids:
            raise RequestError(refusal(spec, f"{token_id} is no token that may begin a call"))
        words = self._tokens.text_words.copy()
        words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return replace(self._tokens, text_words=words)

    def _get_tokenizer(self) -> "LLTokenizer":
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = build_tokenizer(self._token_bytes)
            return self._tokenizer


class Grammar:
    """A compiled grammar, from which any thread may start answers; all share the table of its lexer."""

    def __init__(
        self, new_matcher: "Callable[[], LLMatcher]", tokens: _Tokens, *, bounds_numbers: bool = False
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
        self, grammar: Grammar, tokens: _Tokens, matcher: "LLMatcher", place: NumberPlace | None
    ) -> None:
        self._grammar = grammar
        self._tokens = tokens
        self._matcher = matcher
        self._place = place  # where numbers are bounded
        self._token_ids: list[int] = []
        self._replayed_at = -1
        self._words: _Words | None = None  # the text tokens allowed next, once they are known
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

    def _look(self) -> _Words:
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

    def _bound_number(self, words: _Words) -> _Words:
        """Let a number that has its digits end, if it can."""
        num_left = None if self._place is None else self._place.num_digits_left
        if num_left is None:
            return words
        shorter = self._tokens.digits.without_more_than(num_left, words)
        return shorter if self._may_end or shorter.any() else words

    def _compute_mask(self) -> _Words:
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

    def _fail(self, reason: str) -> _Words:
        if self._error is None:
            self._error = describe(reason)
        return self._end()

    def _end(self) -> _Words:
        self._words, self._may_end = np.zeros_like(self._tokens.text_words), True
        return self._words


def _words(bits: Sequence[bool]) -> _Words:
    """Pack bits as the library does, whose vocabulary has one more token: its end token."""
    padded = np.zeros((len(bits) + 1 + 31) // 32 * 32, dtype=np.bool_)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.uint32)
