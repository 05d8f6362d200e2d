"""Tools, calls and the parts of an answer as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    definition: Mapping[str, object]  # as the client wrote it: {"type": "function", "function": {...}}
    parameters: Mapping[str, object]  # JSON schema of its arguments
    strict: bool = False  # arguments follow the schema in every call


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call in the history of a conversation."""

    id: str
    name: str
    arguments: Mapping[str, object]

    def for_template(self) -> dict[str, object]:
        """Return what chat templates read: arguments as an object."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """What a piece of an answer adds to a call: its name first, then its arguments, as JSON text."""

    index: int
    id: str | None = None  # with the name, on the first delta of a call
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers."""

    text: str


AnswerPart: TypeAlias = str | CallDelta | ReasoningDelta
"""Text of the answer, a piece of a call, or of the thought before both."""


def merge(parts: Sequence[AnswerPart]) -> list[AnswerPart]:
    """Return the parts with neighbours that continue each other as one, and without empty texts."""
    merged: list[AnswerPart] = []
    for part in parts:
        joined = _join(merged[-1], part) if merged else None
        if joined is not None:
            merged[-1] = joined
        elif part != "":
            merged.append(part)
    return merged


def _join(last: AnswerPart, part: AnswerPart) -> AnswerPart | None:
    if isinstance(last, str):
        return last + part if isinstance(part, str) else None
    if isinstance(last, ReasoningDelta):
        return ReasoningDelta(last.text + part.text) if isinstance(part, ReasoningDelta) else None
    if isinstance(part, CallDelta) and part.id is None and part.index == last.index:
        return replace(last, arguments=last.arguments + part.arguments)
    return None
