"""ToolCallParser: a growing answer, split into what is said and what is called.

Nothing that may still become a call is given out as text, and what turns out to be none is given back whole.
White space beside calls belongs to neither.
"""

from collections.abc import Callable
from typing import Protocol

from server.answers.bodies import Body, CallCounter
from server.answers.parts import AnswerPart, merge


class ToolCallParser(Protocol):
    """Reads one answer."""

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""

    @property
    def is_between_calls(self) -> bool:
        """True where no call is under way."""

    def push(self, text: str) -> list[AnswerPart]:
        """Take in more of the answer."""

    def finish(self) -> list[AnswerPart]:
        """Take in its end."""


class TaggedParser:
    """Calls between `begin` and `end`, or, where `end` is "", from `begin` to where they are whole.

    With `in_call` the answer begins behind a `begin` that is part of the prompt.
    """

    def __init__(
        self,
        calls: CallCounter,
        new_body: Callable[[str], Body],
        *,
        begin: str,
        end: str,
        in_call: bool = False,
    ) -> None:
        self._calls = calls
        self._new_body = new_body  # from the first character of the body
        self._begin, self._end = begin, end
        self._space = ""  # white space that is given out with the text after it
        self._has_said = False
        self._held = ""  # the end of the text, where it may be the beginning of `begin`
        self._raw: list[str] | None = [] if in_call else None  # since `begin`, to give back what is no call
        self._body: Body | None = None
        self._num_before = 0  # calls begun before this body
        self._ending: str | None = None  # behind a whole body: what may be the beginning of `end`

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""
        return self._calls.num_calls

    @property
    def is_between_calls(self) -> bool:
        """True where no call is under way."""
        return self._raw is None

    def push(self, text: str) -> list[AnswerPart]:
        """Take in more of the answer."""
        parts: list[AnswerPart] = []
        while text:
            if self._raw is None:
                text = self._push_text(text, parts)
            elif self._ending is not None:
                text = self._push_ending(text)
            else:
                text = self._push_body(text, parts)
        return merge(parts)

    def finish(self) -> list[AnswerPart]:
        """Take in the end of the answer."""
        parts: list[AnswerPart] = []
        if self._body is not None:
            parts += self._body.finish()
        if self._raw is not None and self.num_calls == self._num_before:
            self._say(self._begin + "".join(self._raw), parts)
        self._say(self._held, parts)
        if self._space and not self.num_calls:
            parts.append(self._space)
        self._raw, self._held, self._space = None, "", ""
        return merge(parts)

    def _push_text(self, text: str, parts: list[AnswerPart]) -> str:
        """Give out text up to a call; return what is left behind its beginning."""
        text = self._held + text
        place = text.find(self._begin)
        if place >= 0:
            self._say(text[:place], parts)
            self._held, self._raw, self._num_before = "", [], self.num_calls
            return text[place + len(self._begin) :]
        num_held = overlap(text, self._begin)
        self._held = text[len(text) - num_held :]
        self._say(text[: len(text) - num_held], parts)
        return ""

    def _push_body(self, text: str, parts: list[AnswerPart]) -> str:
        for place, character in enumerate(text):
            assert self._raw is not None
            self._raw.append(character)
            if self._body is None:
                if character.isspace():
                    continue
                self._body = self._new_body(character)
            parts += self._body.push(character)
            if self._body.is_broken:
                return self._give_back(parts) + text[place + 1 :]
            if self._body.is_complete:
                self._space, self._body = "", None
                if self._end:
                    self._ending = ""
                else:
                    self._raw = None
                return text[place + 1 :]
        return ""

    def _give_back(self, parts: list[AnswerPart]) -> str:
        """Leave a body that is broken; return what of it is read again as text."""
        assert self._raw is not None
        raw, self._raw, self._body = "".join(self._raw), None, None
        if self.num_calls > self._num_before:  # a call was given out already: what is left is text
            return raw[-1:]
        self._say(self._begin, parts)
        return raw

    def _push_ending(self, text: str) -> str:
        """Skip white space and stray brackets up to `end`; other text ends the call without it."""
        for place, character in enumerate(text):
            assert self._ending is not None
            candidate = self._ending + character
            if candidate == self._end:
                self._ending = self._raw = None
                return text[place + 1 :]
            if self._end.startswith(candidate):
                self._ending = candidate
            elif self._ending or not (character.isspace() or character in "}],"):
                self._ending = self._raw = None
                return candidate + text[place + 1 :]
        return ""

    def _say(self, text: str, parts: list[AnswerPart]) -> None:
        """Give out text, its white space at the end with what follows."""
        text = self._space + text
        if self.num_calls and not self._has_said:
            text = text.lstrip()
        said = text.rstrip()
        self._space = text[len(said) :]
        if said:
            self._has_said = True
            parts.append(said)


class BareParser:
    """Calls that are the whole answer, perhaps behind `begin`, with `separator` between them."""

    def __init__(
        self, calls: CallCounter, new_body: Callable[[str], Body], *, first: str, begin: str, separator: str
    ) -> None:
        self._calls = calls
        self._new_body = new_body
        self._first, self._begin, self._separator = first, begin, separator
        self._raw: list[str] = []  # of the present call, or what may be the beginning of one
        self._body: Body | None = None
        self._num_before = 0
        self._is_text = False

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""
        return self._calls.num_calls

    @property
    def is_between_calls(self) -> bool:
        """True where no call is under way."""
        return self._body is None

    def push(self, text: str) -> list[AnswerPart]:
        """Take in more of the answer."""
        parts: list[AnswerPart] = []
        for place, character in enumerate(text):
            if self._is_text:
                parts.append(text[place:])
                break
            self._raw.append(character)
            if self._body is not None:
                parts += self._body.push(character)
                self._check_body(self._body, parts)
            else:
                self._look_for_a_call(character, parts)
        return merge(parts)

    def finish(self) -> list[AnswerPart]:
        """Take in the end of the answer."""
        parts: list[AnswerPart] = []
        if self._body is not None:
            parts += self._body.finish()
        if self.num_calls == self._num_before and (not self.num_calls or "".join(self._raw).strip()):
            self._give_back(parts)
        return merge(parts)

    def _check_body(self, body: Body, parts: list[AnswerPart]) -> None:
        if body.is_complete:
            self._body, self._raw, self._num_before = None, [], self.num_calls
        elif body.is_broken:
            if self.num_calls > self._num_before:
                self._raw = self._raw[-1:]
            self._give_back(parts)

    def _look_for_a_call(self, character: str, parts: list[AnswerPart]) -> None:
        bare = "".join(self._raw).strip()
        if self.num_calls and self._separator:
            bare = bare.removeprefix(self._separator).lstrip()
        if self._begin and bare.startswith(self._begin):
            bare = bare[len(self._begin) :].lstrip()
        elif self._begin.startswith(bare) or not bare:
            return
        if bare == self._first:
            self._body = self._new_body(character)
            parts += self._body.push(character)
            self._check_body(self._body, parts)
        elif bare:
            self._give_back(parts)

    def _give_back(self, parts: list[AnswerPart]) -> None:
        self._is_text, self._body = True, None
        parts.append("".join(self._raw))
        self._raw = []


def overlap(text: str, mark: str) -> int:
    """Return how long the longest end of the text is that begins `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
