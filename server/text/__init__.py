"""Everything about text: tokenizer, detokenizer, stop strings and chat templates."""

from server.text.chat_template import ChatTemplate
from server.text.content_guard import ContentGuard
from server.text.detokenizer import Detokenizer
from server.text.errors import TextError
from server.text.fill_in_middle import FillInMiddle, find_fill_in_middle
from server.text.stop_strings import StopMatch, StopStringMatcher
from server.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ContentGuard",
    "Detokenizer",
    "FillInMiddle",
    "StopMatch",
    "StopStringMatcher",
    "TextError",
    "Tokenizer",
    "find_fill_in_middle",
]
