"""Scores of tokens placed in the text that they are part of, and let out with it."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.interface.outputs import TokenLogprobs
from server.text import Tokenizer


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a reply's text with what the model said of it."""

    token_id: int
    offset: int  # of the character of the text in which the token begins
    logprob: float | None  # None for the first token of a prompt, which nothing precedes
    top: Sequence[tuple[int, float]]  # (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where a token stands in a text, in characters; a token may hold a part of one."""

    start: int
    end: int  # once so many characters are out, the token's text is complete


class TokenPlaces:
    r"""Places the tokens of a growing text, which is their bytes decoded as UTF-8.

        tokens  a   \xc3  \xa9 b  c      make the text  aé bc
        start   0   1     1      4
        end     1   2     4      5

    A special token that the text leaves out stands where it would have been.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, start: int = 0) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = start  # complete ones

    def place(self, token_id: int) -> TokenPlace:
        """Return the place of the next token."""
        data = self._tokenizer.token_bytes(token_id)
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            data = b""
        start = self._num_chars
        if data:  # its first byte is in the last character that the open bytes make with it
            start += _num_chars(self._open_bytes() + data[:1]) - 1
        self._num_chars += len(self._decoder.decode(data))
        return TokenPlace(start, self._num_chars + _num_chars(self._open_bytes()))

    def _open_bytes(self) -> bytes:
        return self._decoder.getstate()[0]


def _num_chars(data: bytes) -> int:
    return len(data.decode(errors="replace"))


class ScoredText:
    """The scores of one growing answer, which begins at character `start` of its reply's text.

    Each is released when the token's text is complete.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, start: int = 0) -> None:
        self._places = TokenPlaces(tokenizer, skip_special_tokens=skip_special_tokens, start=start)
        self._num_chars = start  # that are out
        self._waiting: deque[tuple[TokenPlace, ScoredToken]] = deque()

    def push(self, scores: Sequence[TokenLogprobs]) -> None:
        """Add the tokens of the text, in order."""
        for score in scores:
            place = self._places.place(score.token_id)
            token = ScoredToken(score.token_id, place.start, score.logprob, score.top)
            self._waiting.append((place, token))

    def release(self, num_new_chars: int, *, is_last: bool) -> tuple[ScoredToken, ...]:
        """Return the tokens that become complete as so many more characters go out.

        With `is_last` the text ends there: a token that it cuts in two comes too, what begins later never.
        """
        self._num_chars += num_new_chars
        released = []
        while self._waiting:
            place, token = self._waiting[0]
            if place.end > self._num_chars and not (is_last and place.start < self._num_chars):
                break
            released.append(token)
            self._waiting.popleft()
        return tuple(released)


def score_prompt(
    token_ids: Sequence[int],
    scores: Sequence[TokenLogprobs],
    tokenizer: Tokenizer,
    *,
    num_hidden: int,
    skip_special_tokens: bool,
) -> list[ScoredToken]:
    """Place the tokens of a prompt in its echo, which leaves out the first `num_hidden` of them.

    `scores` begin with the second token: nothing precedes the first.
    """
    places = TokenPlaces(tokenizer, skip_special_tokens=skip_special_tokens)
    starts = [0] * num_hidden + [places.place(token_id).start for token_id in token_ids[num_hidden:]]
    tokens = [ScoredToken(token_ids[0], starts[0], None, ())]
    tokens += [
        ScoredToken(score.token_id, start, score.logprob, score.top)
        for score, start in zip(scores, starts[1:], strict=True)
    ]
    return tokens
