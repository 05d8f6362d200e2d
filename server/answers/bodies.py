"""Bodies: what stands between the marks of a call, read character by character into deltas."""

import ast
import json
from collections.abc import Callable, Collection
from typing import Protocol

from server.answers.call_scanner import CallScanner, ValueScanner
from server.answers.parts import CallDelta

_WHITESPACE = frozenset(" \t\r\n")
_NAME_END = ("[ARGS]", "{")
_CALL_ID = "[CALL_ID]"


class CallCounter:
    """Numbers the calls of one answer and gives them ids."""

    def __init__(self, names: Collection[str], new_id: Callable[[], str]) -> None:
        self.names = names
        self.num_calls = 0  # begun
        self._new_id = new_id

    def begin(self, name: str) -> CallDelta:
        """Return the first delta of a new call."""
        self.num_calls += 1
        return CallDelta(index=self.num_calls - 1, id=self._new_id(), name=name)

    def add(self, arguments: str) -> CallDelta:
        """Return a delta with more arguments of the present call."""
        return CallDelta(index=self.num_calls - 1, arguments=arguments)


class Body(Protocol):
    """One way to write calls between two marks."""

    @property
    def is_broken(self) -> bool:
        """True where the text cannot be a call."""

    @property
    def is_complete(self) -> bool:
        """True when every call that was begun is whole and nothing more belongs to them."""

    def push(self, character: str) -> list[CallDelta]:
        """Take in a character."""

    def finish(self) -> list[CallDelta]:
        """Take in the end of the answer."""


class JsonBody:
    """An object with name and arguments, or a list of such objects."""

    def __init__(self, calls: CallCounter) -> None:
        self.is_broken = False
        self.is_complete = False
        self._calls = calls
        self._in_list = False
        self._needs_comma = False
        self._scanner: CallScanner | None = None
        self._has_name = False

    def push(self, character: str) -> list[CallDelta]:
        """Take in a character."""
        if self._scanner is not None:
            return self._push_call(self._scanner, character)
        if character in _WHITESPACE:
            return []
        if character == "{" and not self._needs_comma:
            self._scanner, self._has_name = CallScanner(self._calls.names), False
            self._scanner.push(character)
        elif character == "[" and not self._in_list:
            self._in_list = True
        elif character == "," and self._needs_comma:
            self._needs_comma = False
        elif character == "]" and self._in_list and self._needs_comma:
            self.is_complete = True
        else:
            self.is_broken = True
        return []

    def finish(self) -> list[CallDelta]:
        """Take in the end of the answer."""
        return []

    def _push_call(self, scanner: CallScanner, character: str) -> list[CallDelta]:
        scanner.push(character)
        if scanner.is_broken:
            self.is_broken = True
            return []
        deltas = []
        if scanner.name is not None and not self._has_name:
            self._has_name = True
            deltas.append(self._calls.begin(scanner.name))
        if arguments := scanner.take_arguments():
            deltas.append(self._calls.add(arguments))
        if scanner.is_complete:
            self._scanner = None
            self._needs_comma = self._in_list
            self.is_complete = not self._in_list
        return deltas


class NamedBody:
    """Mistral's later way: `name[ARGS]{...}`, perhaps with `[CALL_ID]id` before the arguments."""

    def __init__(self, calls: CallCounter) -> None:
        self.is_broken = False
        self.is_complete = False
        self._calls = calls
        self._head = ""
        self._value: ValueScanner | None = None

    def push(self, character: str) -> list[CallDelta]:
        """Take in a character."""
        if self._value is not None:
            return self._push_arguments(self._value, character)
        self._head += character
        ending = next((end for end in _NAME_END if self._head.endswith(end)), None)
        if ending is None:
            return []
        name = self._head[: -len(ending)].split(_CALL_ID, 1)[0].strip()
        if name not in self._calls.names:
            self.is_broken = True
            return []
        self._value = ValueScanner()
        begun = [self._calls.begin(name)]
        return begun + self._push_arguments(self._value, "{") if ending == "{" else begun

    def finish(self) -> list[CallDelta]:
        """Take in the end of the answer."""
        return []

    def _push_arguments(self, value: ValueScanner, character: str) -> list[CallDelta]:
        self.is_complete = value.push(character)
        return [self._calls.add(character)]


class PythonicBody:
    """Llama's pythonic way: `[f(a=1), g(b="x")]`, read when it is whole."""

    def __init__(self, calls: CallCounter) -> None:
        self.is_broken = False
        self.is_complete = False
        self._calls = calls
        self._text: list[str] = []
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    def push(self, character: str) -> list[CallDelta]:
        """Take in a character."""
        self._text.append(character)
        if self._is_escaped:
            self._is_escaped = False
        elif self._quote:
            self._is_escaped = character == "\\"
            self._quote = "" if character == self._quote else self._quote
        elif character in "'\"":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
            return self._read() if self._depth == 0 else []
        return []

    def finish(self) -> list[CallDelta]:
        """Take in the end of the answer: a list that never ended is no call."""
        self.is_broken |= not self.is_complete
        return []

    def _read(self) -> list[CallDelta]:
        calls = read_pythonic("".join(self._text), self._calls.names)
        if calls is None:
            self.is_broken = True
            return []
        self.is_complete = True
        deltas = []
        for name, arguments in calls:
            deltas += [self._calls.begin(name), self._calls.add(arguments)]
        return deltas


def read_pythonic(text: str, names: Collection[str]) -> list[tuple[str, str]] | None:
    """Return the name and arguments, as JSON, of each call in a list of Python calls; None for other text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        calls = []
        for node in tree.elts:
            if not isinstance(node, ast.Call) or node.args or ast.unparse(node.func) not in names:
                return None
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            calls.append((ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False)))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    return calls
