"""What a server's chunks say: text, thoughts, and counts where it has them. Nothing of them is relied on."""

from collections.abc import Iterator
from dataclasses import replace

from server.terminal.backend import AnswerStats, TextPiece
from server.terminal.clean import clean_line

_REASONING = ("reasoning_content", "reasoning")  # two names that servers have for it


def member(value: object, *path: str) -> object:
    """Return a member of a member of a JSON value, None where there is none."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def error_message(content: object) -> str:
    """Return what an error says, in the shapes that servers have for it; "" if nothing is found."""
    for path in (("error", "message"), ("error",), ("message",), ("detail",)):
        found = member(content, *path)
        if isinstance(found, str):
            return clean_line(found)
    return ""


class AnswerReader:
    """Collects the stats of an answer while its chunks are read."""

    def __init__(self) -> None:
        self.stats = AnswerStats()

    @property
    def is_finished(self) -> bool:
        """True once the answer has its finish reason."""
        return self.stats.finish_reason is not None

    def read(self, content: object) -> Iterator[TextPiece]:
        """Yield the text of a chunk, or of a whole answer."""
        self._read_usage(member(content, "usage"))
        choices = member(content, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        reason, seed = member(choice, "finish_reason"), _count(member(choice, "seed"), least=None)
        if isinstance(reason, str):
            self.stats = replace(self.stats, finish_reason=clean_line(reason, max_chars=40))
        if seed is not None:
            self.stats = replace(self.stats, seed=seed)
        message = member(choice, "delta") or member(choice, "message")
        for name in _REASONING:
            thought = member(message, name)
            if isinstance(thought, str) and thought:
                yield TextPiece(thought, is_reasoning=True)
                break
        for text in (member(message, "content"), member(choice, "text")):
            if isinstance(text, str) and text:
                yield TextPiece(text)

    def _read_usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        self.stats = replace(
            self.stats,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            cached_tokens=_count(member(usage, "prompt_tokens_details", "cached_tokens")),
            drafted_tokens=_count(member(usage, "draftline", "speculation", "drafted")),
            accepted_tokens=_count(member(usage, "draftline", "speculation", "accepted")),
        )


def _count(value: object, *, least: int | None = 0) -> int | None:
    is_count = type(value) is int and (least is None or value >= least)
    return value if is_count and isinstance(value, int) and abs(value) < 1 << 64 else None
