"""LineEditor: messages typed at a terminal, with history, completion and several lines."""

from collections.abc import Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from server.terminal.commands import COMMANDS
from server.terminal.message_source import Interrupted
from server.terminal.settings import AnswerParams
from server.terminal.typed_message import is_complete, without_marks

_PROMPT = FormattedText([("ansigreen bold", "> ")])
_CONTINUATION = FormattedText([("ansigreen", ". ")])


class LineEditor:
    """Reads one message after the other with prompt_toolkit."""

    def __init__(self, history: History | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            multiline=True,  # Enter is bound below
            prompt_continuation=_CONTINUATION,
            history=history or InMemoryHistory(),
            completer=_CommandCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_key_bindings(),
            enable_suspend=True,
        )

    async def read(self) -> str | None:
        """Return the next message, None after Ctrl-D on an empty line; raises Interrupted."""
        try:
            # The chat has a handler for SIGINT of its own; here Ctrl-C is a key.
            text = await self._session.prompt_async(handle_sigint=False, set_exception_handler=False)
        except EOFError:
            return None
        return without_marks(text)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()
    is_typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=is_typing)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
            return
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
        buffer.insert_text("\n")

    @bindings.add("escape", "enter", filter=is_typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c", filter=is_typing)
    def _interrupt(event: KeyPressEvent) -> None:
        was_empty = not event.current_buffer.text
        event.app.exit(exception=Interrupted(was_empty=was_empty), style="class:aborting")

    return bindings


class _CommandCompleter(Completer):
    """Completes commands, parameters' names and files."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the word at the cursor may become."""
        text = document.text_before_cursor
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            yield from _matching(
                name, {word: " " if command.usage else "" for word, command in COMMANDS.items()}
            )
        elif name == "params":
            fields = dict.fromkeys(AnswerParams.model_fields, " ")
            yield from _matching(argument.rpartition(" ")[2], fields)
        elif name in ("save", "load"):
            path = argument.removeprefix("-f ")
            yield from self._paths.get_completions(Document(path, len(path)), complete_event)


def _matching(typed: str, words: Mapping[str, str]) -> Iterable[Completion]:
    """Yield the words that begin with what is typed, and what is to stand behind each."""
    for word, behind in words.items():
        if word.startswith(typed):
            yield Completion(word + behind, start_position=-len(typed), display=word)
