"""StopStringMatcher: cuts growing text at the first stop string (Aho and Corasick, 1975)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.text.errors import TextError


@dataclass(frozen=True, kw_only=True)
class StopMatch:
    """What one push settled."""

    text: str  # safe to emit now
    stopped: bool  # a stop string has come; nothing follows
    stop: str | None  # which one


@dataclass(slots=True, eq=False)
class _Prefix:
    """A prefix of some stop string: a state of the automaton."""

    string: str  # a stop string that begins with it
    depth: int  # its length in characters
    children: "dict[str, _Prefix]" = field(default_factory=dict)
    suffix: "_Prefix | None" = None  # the longest proper suffix that is itself a prefix; None at the root
    stop: str | None = None  # the longest stop string that ends here


class StopStringMatcher:
    """Searches for stop strings in text that comes in parts.

    The string that is complete first wins, of several that end at one character the longest. So an answer
    ends at the first token that completes any of them, whatever longer string might still have come, and
    the cut never depends on how the text was split. Held back is exactly the longest tail that could still
    become a stop string. Each character costs O(1) amortised.

    Raises TextError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        self._root = _build(stop)
        self._include_stop = include_stop
        self._prefix = self._root  # it is also the text held back
        self._stop: str | None = None

    def push(self, text: str) -> StopMatch:
        """Add text; what follows a stop string is dropped, in this push and all later ones."""
        if self._stop is not None:
            return StopMatch(text="", stopped=True, stop=self._stop)
        held = self._prefix
        for end, character in enumerate(text, start=1):
            self._prefix = self._advance(character)
            if self._prefix.stop is not None:
                self._stop = self._prefix.stop
                self._prefix = self._root
                num_kept = held.depth + end - (0 if self._include_stop else len(self._stop))
                return StopMatch(text=_head(held, text, num_kept), stopped=True, stop=self._stop)
        num_safe = held.depth + len(text) - self._prefix.depth
        return StopMatch(text=_head(held, text, num_safe), stopped=False, stop=None)

    def flush(self) -> str:
        """Return the tail that was held back; no stop string is in it."""
        held, self._prefix = self._prefix, self._root
        return held.string[: held.depth]

    def _advance(self, character: str) -> _Prefix:
        prefix: _Prefix | None = self._prefix
        while prefix is not None:
            child = prefix.children.get(character)
            if child is not None:
                return child
            prefix = prefix.suffix
        return self._root


def _build(stop: Sequence[str]) -> _Prefix:
    """Build the automaton, in time linear in the characters of all stop strings."""
    root = _Prefix("", 0)
    for string in stop:
        if not string:
            raise TextError("a stop string must not be empty", param="stop")
        prefix = root
        for character in string:
            prefix = prefix.children.setdefault(character, _Prefix(string, prefix.depth + 1))
        prefix.stop = string
    waiting = deque([root])
    while waiting:
        prefix = waiting.popleft()
        for character, child in prefix.children.items():
            child.suffix = _longest_suffix(prefix.suffix, character, root)
            child.stop = child.stop or child.suffix.stop
            waiting.append(child)
    return root


def _longest_suffix(prefix: _Prefix | None, character: str, root: _Prefix) -> _Prefix:
    while prefix is not None:
        if character in prefix.children:
            return prefix.children[character]
        prefix = prefix.suffix
    return root


def _head(held: _Prefix, text: str, num_characters: int) -> str:
    """Return the first characters of the text held back and the new text together."""
    return held.string[: min(held.depth, num_characters)] + text[: max(0, num_characters - held.depth)]
