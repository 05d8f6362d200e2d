"""Chat: reads messages, shows answers and runs commands until somebody leaves."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.text import Text

from engine.interface.errors import DraftlineError
from server.terminal.answer_view import AnswerView, MarkdownView, PlainView
from server.terminal.backend import AnswerBackend, Message
from server.terminal.clean import clean_line
from server.terminal.commands import ChatState, Next, run_command
from server.terminal.conversation import Conversation
from server.terminal.message_source import Interrupted, MessageSource
from server.terminal.output import Output
from server.terminal.settings import ChatSettings
from server.terminal.show_answer import ShownAnswer, show_answer
from server.terminal.status_line import SessionTotals, status_line


class Chat:
    """One conversation with one backend."""

    def __init__(
        self, backend: AnswerBackend, source: MessageSource, output: Output, settings: ChatSettings
    ) -> None:
        self._backend = backend
        self._source = source
        self._output = output
        self._is_plain = settings.plain or not output.is_terminal
        self._state = ChatState(
            conversation=Conversation(system=settings.system, params=settings.params),
            totals=SessionTotals(),
            output=output,
            model=backend.name,
        )
        self._answering: asyncio.Task[None] | None = None
        self._has_failed = False

    def greet(self) -> None:
        """Say who answers."""
        line = Text.assemble((self._backend.name, "bold"), "  ", (self._backend.description, "dim"))
        self._output.notes.print(line, soft_wrap=True)
        self._output.note("/help lists commands and keys; Ctrl-C stops an answer, Ctrl-D leaves")

    async def run(self, *, is_interactive: bool) -> bool:
        """Answer until the end of the input; return whether all answers came."""
        was_interrupted = False  # on an empty line
        # A pipe is read without the event loop, which could not end that.
        with _on_ctrl_c(self.stop) if is_interactive else _nothing():
            while True:
                try:
                    text = await self._source.read()
                except Interrupted as interrupted:
                    if interrupted.was_empty and was_interrupted:
                        break
                    was_interrupted = interrupted.was_empty
                    if was_interrupted:
                        self._output.note("Ctrl-C again leaves")
                    continue
                was_interrupted = False
                if text is None or not await self._handle(text, is_interactive=is_interactive):
                    break
        return not self._has_failed

    def stop(self) -> None:
        """End the answer that is under way, if one is."""
        if self._answering is not None:
            self._answering.cancel()

    async def _handle(self, text: str, *, is_interactive: bool) -> bool:
        """Answer a message or run a command; return False to leave."""
        messages: Sequence[Message] | None = None
        if text.startswith("/") and not text.startswith("//"):
            following = run_command(text, self._state)
            if following is Next.RETRY:
                messages = self._state.conversation.ask_again()
                if messages is None:
                    self._output.note("there is no question to answer again")
            elif following is Next.LEAVE:
                return False
        elif text:
            messages = self._state.conversation.ask(text.removeprefix("/") if text[:2] == "//" else text)
        if messages is not None:
            with _nothing() if is_interactive else _on_ctrl_c(self.stop):
                await self._answer(messages)
        return True

    async def _answer(self, messages: Sequence[Message]) -> None:
        """Show an answer and keep it; of one that Ctrl-C stops what came, of one that fails nothing."""
        answer = ShownAnswer()
        self._answering = asyncio.ensure_future(self._show(messages, answer))
        # Not awaited itself: its end by Ctrl-C must not look like the end of this task.
        await asyncio.wait({self._answering})
        task, self._answering = self._answering, None
        if task.cancelled():
            self._output.note("stopped")
            if answer.text:
                self._state.conversation.answer(answer.text)
            return
        try:
            task.result()
        except DraftlineError as error:
            self._has_failed = True
            self._output.error(f"{clean_line(str(error))}{self._retry_hint()}")
            return
        self._state.conversation.answer(answer.text)
        self._state.totals.add(answer.stats, answer.times)
        if self._output.is_terminal:
            self._output.note(status_line(answer.stats, answer.times))

    def _retry_hint(self) -> str:
        return " (/retry asks again)" if self._output.is_terminal else ""

    async def _show(self, messages: Sequence[Message], answer: ShownAnswer) -> None:
        events = self._backend.chat(messages, self._state.conversation.params)
        await show_answer(events, self._new_view(), answer, is_terminal=self._output.is_terminal)

    def _new_view(self) -> AnswerView:
        return PlainView(self._output) if self._is_plain else MarkdownView(self._output)


@contextmanager
def _on_ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, action)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
