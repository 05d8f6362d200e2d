"""ReasoningSplitter: what a model thinks before it answers, apart from the answer.

The thought stands between `<think>` and `</think>` at the beginning of an answer; some chat templates write
the first of them themselves, at the end of the prompt.
"""

from server.answers.parsers import overlap

BEGIN, END = "<think>", "</think>"


class ReasoningSplitter:
    """Splits one answer; white space around the thought belongs to neither part."""

    def __init__(self, *, in_reasoning: bool) -> None:
        self.in_reasoning = in_reasoning
        self._is_content = False
        self._held = ""  # what may be the beginning of a mark, or white space before one
        self._has_begun = False  # something of the present part was given out

    def push(self, text: str) -> tuple[str, str]:
        """Take in more of the answer; return what it adds to the thought, and to the answer behind it."""
        if self._is_content:
            return "", self._content(text)
        text, self._held = self._held + text, ""
        if not self.in_reasoning:
            bare = text.lstrip()
            if not bare.startswith(BEGIN):
                if BEGIN.startswith(bare):
                    self._held = text
                    return "", ""
                self._is_content = self._has_begun = True
                return "", text
            self.in_reasoning, text = True, bare[len(BEGIN) :]
        return self._push_thought(text)

    def finish(self) -> tuple[str, str]:
        """Take in the end of the answer."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self.in_reasoning else ("", held)

    def _push_thought(self, text: str) -> tuple[str, str]:
        if not self._has_begun:
            text = text.lstrip()
        thought, mark, content = text.partition(END)
        if mark:
            self.in_reasoning, self._is_content, self._has_begun = False, True, False
            return thought.rstrip(), self._content(content)
        kept = thought[: len(thought) - overlap(thought, END)].rstrip()
        self._held = thought[len(kept) :]
        self._has_begun |= bool(kept)
        return kept, ""

    def _content(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text
