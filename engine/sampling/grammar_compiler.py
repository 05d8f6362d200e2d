"""GrammarCompiler: from specs to grammars, each once, first where it may crash."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError, RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.structural_tag import read_structural_tag
from engine.sampling.grammar import Grammar, GrammarState, GrammarTokens, token_words
from engine.sampling.grammar_library import (
    bounds_numbers,
    build_tokenizer,
    library_grammar,
    named_token,
    new_matcher,
    refusal,
)
from engine.sampling.grammar_trial import TrialProcesses
from engine.sampling.number_bound import DigitTokens
from engine.sampling.thought import ThoughtGrammar, ThoughtState

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class CompiledGrammar(Protocol):
    """A grammar that answers can be started in."""

    def start(self) -> "GrammarState | ThoughtState":
        """Return the state before the first token."""


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
        self._tokens = GrammarTokens(
            num_tokens=len(token_bytes),
            token_bytes=self._token_bytes,
            digits=DigitTokens(self._token_bytes, token_words),
            end_token_ids=end_token_ids,
            text_words=token_words([bool(text) for text in self._token_bytes]),
        )
        self._max_cached = max_cached
        self._trials = TrialProcesses(self._token_bytes, deadline_seconds=deadline_seconds)
        self._cache: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()

    def compile(
        self,
        spec: GrammarSpec,
        *,
        param: str = "response_format",
        cancellation: Cancellation | None = None,
    ) -> CompiledGrammar:
        """Return the grammar of a spec; many callers at once do the work once.

        Takes milliseconds, at worst seconds: not for the event loop. Raises RequestError, which blames
        `param`, for a spec that is malformed, unsupported, impossible for this vocabulary or too complex, and
        CancelledError once this call is cancelled.
        """
        cancellation = cancellation or Cancellation()
        try:
            while (grammar := self._compile_once(spec, cancellation)) is None:
                pass
        except RequestError as error:
            raise RequestError(str(error), param=param) from None
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of the library, which looks like an exit
            raise RequestError(refusal(spec, f"panic: {error}"), param=param) from None
        return grammar

    def _compile_once(self, spec: GrammarSpec, cancellation: Cancellation) -> CompiledGrammar | None:
        """Return None where another caller's work was cancelled for which this one waited."""
        with self._lock:
            future = self._cache.get(spec)
            is_mine = future is None
            if future is None:
                future = self._cache[spec] = Future()
            self._cache.move_to_end(spec)
            while len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        if is_mine:
            self._compile_into(future, spec, cancellation)
        try:
            return _result_of(future, cancellation)
        except CancelledError:
            if cancellation.is_cancelled:
                raise
            return None

    def find(self, spec: GrammarSpec) -> CompiledGrammar | None:
        """Return the grammar of a spec that is compiled; takes no time."""
        with self._lock:
            future = self._cache.get(spec)
            if future is None or not future.done() or future.exception() is not None:
                return None
            self._cache.move_to_end(spec)
        return future.result()

    def close(self) -> None:
        """End the trial processes; compiling starts them again."""
        self._trials.close()

    def _compile_into(
        self, future: "Future[CompiledGrammar]", spec: GrammarSpec, cancellation: Cancellation
    ) -> None:
        try:
            future.set_result(self._compile_any(spec, cancellation))
        except BaseException as error:  # noqa: BLE001 - those who wait must not wait for ever
            with self._lock:
                if self._cache.get(spec) is future:
                    del self._cache[spec]
            future.set_exception(error)

    def _compile_any(self, spec: GrammarSpec, cancellation: Cancellation) -> CompiledGrammar:
        """Compile a grammar; the library has no part in a thought before it."""
        if spec.kind is not GrammarKind.STRUCTURAL_TAG:
            return self._compile(spec, cancellation)
        try:
            tag = read_structural_tag(spec.source)
        except ValueError as error:
            raise RequestError(refusal(spec, str(error))) from None
        if tag.thought is None:
            return self._compile(spec, cancellation)
        rest = None
        if tag.is_constrained:
            rest = self.compile(replace(tag, thought=None).spec(), cancellation=cancellation)
        return ThoughtGrammar(tag.thought, self._token_bytes, rest, self._tokens.end_token_ids)

    def _compile(self, spec: GrammarSpec, cancellation: Cancellation) -> "Grammar":
        grammar, tokens = library_grammar(spec), self._tokens_of(spec)
        if spec.kind not in (GrammarKind.JSON_OBJECT, GrammarKind.CHOICE):  # those two are always harmless
            self._trials.check(spec, grammar, cancellation)
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

    def _tokens_of(self, spec: GrammarSpec) -> GrammarTokens:
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


def _result_of(future: "Future[CompiledGrammar]", cancellation: Cancellation) -> CompiledGrammar:
    """Wait for the result of whoever compiles it; raises CancelledError if this caller leaves first."""
    wake = threading.Event()
    future.add_done_callback(lambda _: wake.set())
    with cancellation.calling(wake.set):
        wake.wait()
    if not future.done():
        raise CancelledError("nobody waits for this grammar any more")
    return future.result()
