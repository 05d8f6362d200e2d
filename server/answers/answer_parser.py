"""AnswerParser: the text of one choice, split into reasoning, content and tool calls."""

from server.answers.parsers import ToolCallParser
from server.answers.parts import AnswerPart, CallDelta, ReasoningDelta
from server.answers.reasoning import ReasoningSplitter


class AnswerParser:
    """Reads one answer with what its model family writes in it.

    With `max_calls` later calls are dropped, and `is_over` says when there can be no more.
    """

    def __init__(
        self,
        *,
        reasoning: ReasoningSplitter | None,
        tool_calls: ToolCallParser | None,
        max_calls: int | None = None,
    ) -> None:
        self._reasoning = reasoning
        self._tool_calls = tool_calls
        self._max_calls = max_calls

    @property
    def has_calls(self) -> bool:
        """True once a call has begun."""
        return self._tool_calls is not None and self._tool_calls.num_calls > 0

    @property
    def in_reasoning(self) -> bool:
        """True while the model thinks."""
        return self._reasoning is not None and self._reasoning.in_reasoning

    @property
    def is_over(self) -> bool:
        """True when the answer has as many calls as it may have, and they are whole."""
        calls = self._tool_calls
        if calls is None or self._max_calls is None:
            return False
        return calls.num_calls > self._max_calls or (
            calls.num_calls == self._max_calls and calls.is_between_calls
        )

    def push(self, text: str) -> list[AnswerPart]:
        """Take in more of the answer."""
        parts: list[AnswerPart] = []
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text)
            if thought:
                parts.append(ReasoningDelta(thought))
        return parts + self._push_content(text)

    def finish(self) -> list[AnswerPart]:
        """Take in the end of the answer."""
        parts: list[AnswerPart] = []
        if self._reasoning is not None:
            thought, text = self._reasoning.finish()
            if thought:
                parts.append(ReasoningDelta(thought))
            parts += self._push_content(text)
        return parts + (self._kept(self._tool_calls.finish()) if self._tool_calls is not None else [])

    def _push_content(self, text: str) -> list[AnswerPart]:
        if not text:
            return []
        return [text] if self._tool_calls is None else self._kept(self._tool_calls.push(text))

    def _kept(self, parts: list[AnswerPart]) -> list[AnswerPart]:
        limit = self._max_calls
        return [
            part for part in parts if limit is None or not isinstance(part, CallDelta) or part.index < limit
        ]
