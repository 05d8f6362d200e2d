"""What is said of an answer behind it, and of all answers together."""

from dataclasses import dataclass

from server.terminal.backend import AnswerStats

_MIN_SECONDS = 0.02  # between two pieces: less says how they were sent, not how they were generated


@dataclass(frozen=True, kw_only=True)
class AnswerTimes:
    """Seconds from the question to the first and to the last piece of text; None: there was none."""

    first: float | None = None
    last: float = 0.0

    def tokens_per_second(self, num_tokens: int) -> float | None:
        """Return the rate behind the first token, which a prompt's length does not change."""
        if self.first is None or num_tokens < 2 or self.last - self.first < _MIN_SECONDS:
            return None
        return (num_tokens - 1) / (self.last - self.first)


def status_line(stats: AnswerStats, times: AnswerTimes) -> str:
    """Return what is known of an answer; what its server does not say is left out."""
    parts = []
    if stats.completion_tokens is not None:
        parts.append(_count(stats.completion_tokens, "token"))
        rate = times.tokens_per_second(stats.completion_tokens)
        if rate is not None:
            parts.append(f"{rate:,.1f} tok/s")
    if times.first is not None:
        parts.append(f"first in {times.first:.2f} s")
    if stats.cached_tokens is not None and stats.prompt_tokens is not None:
        parts.append(f"{stats.cached_tokens:,}/{stats.prompt_tokens:,} prompt tokens cached")
    elif stats.prompt_tokens is not None:
        parts.append(_count(stats.prompt_tokens, "prompt token"))
    if stats.accepted_tokens and stats.drafted_tokens:
        parts.append(f"{stats.accepted_tokens:,}/{stats.drafted_tokens:,} drafts accepted")
    if stats.seed is not None:
        parts.append(f"seed {stats.seed}")
    if stats.finish_reason == "length":
        parts.append("cut off: max_tokens or the context is used up")
    return ", ".join(parts)


class SessionTotals:
    """Sums over the answers of a session; what was not said is counted as nothing."""

    def __init__(self) -> None:
        self._num_answers = 0
        self._tokens = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._rates: list[float] = []
        self.last = ""  # the last answer's status line

    def add(self, stats: AnswerStats, times: AnswerTimes) -> None:
        """Count an answer."""
        self._num_answers += 1
        self._tokens += stats.completion_tokens or 0
        self._prompt_tokens += stats.prompt_tokens or 0
        self._cached_tokens += stats.cached_tokens or 0
        self._drafted_tokens += stats.drafted_tokens or 0
        self._accepted_tokens += stats.accepted_tokens or 0
        rate = times.tokens_per_second(stats.completion_tokens or 0)
        if rate is not None:
            self._rates.append(rate)
        self.last = status_line(stats, times)

    def lines(self) -> list[str]:
        """Return what is known of the session."""
        if not self._num_answers:
            return ["no answer yet"]
        rates = sorted(self._rates)
        median = f", median {rates[len(rates) // 2]:,.1f} tok/s" if rates else ""
        lines = [f"{_count(self._num_answers, 'answer')}, {_count(self._tokens, 'token')}{median}"]
        lines.append(f"{self._cached_tokens:,}/{self._prompt_tokens:,} prompt tokens cached")
        if self._drafted_tokens:
            lines.append(f"{self._accepted_tokens:,}/{self._drafted_tokens:,} drafts accepted")
        return [*lines, f"last answer: {self.last}"]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
