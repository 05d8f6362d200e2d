"""show_answer: an answer from its backend to the screen, and what is to be known of it behind."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from server.terminal.answer_view import AnswerView, showing
from server.terminal.backend import AnswerEvent, AnswerStats
from server.terminal.status_line import AnswerTimes


@dataclass
class ShownAnswer:
    """What has come of an answer."""

    parts: list[str] = field(default_factory=list)  # of its text, without thoughts
    stats: AnswerStats = field(default_factory=AnswerStats)  # empty until the end
    times: AnswerTimes = field(default_factory=AnswerTimes)

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.parts)


async def show_answer(
    events: AsyncGenerator[AnswerEvent, None], view: AnswerView, answer: ShownAnswer, *, is_terminal: bool
) -> None:
    """Show an answer as it comes; however it ends, `answer` holds what came and all of that is shown."""
    started = time.perf_counter()
    async with showing(view, is_terminal=is_terminal), aclosing(events):
        async for event in events:
            if isinstance(event, AnswerStats):
                answer.stats = event
                continue
            if not event.text:
                continue
            now = time.perf_counter() - started
            first = now if answer.times.first is None else answer.times.first
            answer.times = AnswerTimes(first=first, last=now)
            view.push(event)
            if not event.is_reasoning:
                answer.parts.append(event.text)
