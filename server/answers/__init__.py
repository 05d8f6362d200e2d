"""What models write in their answers, reasoning and tool calls, read as it grows; nothing knows HTTP."""

from server.answers.answer_parser import AnswerParser
from server.answers.formats import FORMATS, ToolFormat, choose_format
from server.answers.parsers import ToolCallParser
from server.answers.parts import AnswerPart, CallDelta, ReasoningDelta, Tool, ToolCall, merge
from server.answers.reasoning import ReasoningSplitter

__all__ = [
    "FORMATS",
    "AnswerParser",
    "AnswerPart",
    "CallDelta",
    "ReasoningDelta",
    "ReasoningSplitter",
    "Tool",
    "ToolCall",
    "ToolCallParser",
    "ToolFormat",
    "choose_format",
    "merge",
]
