"""ContentGuard: what people write stays text, even where it spells a control token.

A chat template's own "<|im_end|>" ends a turn; the same characters in a message must not. So before a
template sees a message, the first character of each special token in it is exchanged for a stand-in, a
private character that stands nowhere else in the conversation. The tokenizer finds no special token there,
and puts the character back before it encodes the text between special tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.text.added_tokens import AddedTokens
from server.text.errors import TextError

_PRIVATE = range(0x100000, 0x10FFFE)  # plane 16, to which Unicode gives no meaning


class ContentGuard:
    """Finds special tokens in messages; safe to share between threads."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        tokens = [token for token in special_tokens if token]
        self._tokens = AddedTokens({token: number for number, token in enumerate(tokens)})
        self._prefixes = frozenset(token[:length] for token in tokens for length in range(1, len(token)))
        self._longest = max(map(len, tokens), default=0)

    def guard(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, str]]:
        """Return the messages with stand-ins in them, and what each stands for; none is the usual case.

        The roles of messages are the server's words. Raises TextError where no private character is left.
        """
        stand_ins = _StandIns(messages)
        guarded: list[Mapping[str, Any]] = [
            {key: item if key == "role" else self._guard(item, stand_ins) for key, item in message.items()}
            for message in messages
        ]
        return guarded, {stand_in: character for character, stand_in in stand_ins.chosen.items()}

    def _guard(self, value: Any, stand_ins: "_StandIns") -> Any:
        if isinstance(value, str):
            return self._guard_text(value, stand_ins)
        if isinstance(value, Mapping):
            return {self._guard(key, stand_ins): self._guard(item, stand_ins) for key, item in value.items()}
        return [self._guard(item, stand_ins) for item in value] if isinstance(value, list | tuple) else value

    def _guard_text(self, text: str, stand_ins: "_StandIns") -> str:
        places = [*self._tokens.find_all(text), *self._beginnings_at_end(text)]
        if not places:
            return text
        characters = list(text)
        for place in places:
            characters[place] = stand_ins.of(text[place])
        return "".join(characters)

    def _beginnings_at_end(self, text: str) -> Iterator[int]:
        """Yield where the end of a text may be the beginning of a token: a template may join texts."""
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[place:] in self._prefixes:
                yield place


class _StandIns:
    """Private characters that a conversation does not contain, drawn when they are needed."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self._messages = messages
        self._free: Iterator[str] | None = None
        self.chosen: dict[str, str] = {}

    def of(self, character: str) -> str:
        if character not in self.chosen:
            if self._free is None:
                used = frozenset().union(*_texts(self._messages))
                self._free = (chr(code) for code in _PRIVATE if chr(code) not in used)
            stand_in = next(self._free, None)
            if stand_in is None:
                raise TextError("the messages use every private character there is")
            self.chosen[character] = stand_in
        return self.chosen[character]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
