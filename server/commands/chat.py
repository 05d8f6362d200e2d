"""`draftline chat`: a conversation in the terminal, or one answer for each line of a pipe."""

import sys
from collections.abc import Sequence

from server.commands.model_check import check_models
from server.settings import parse_settings
from server.terminal.backend import AnswerBackend
from server.terminal.message_source import MessageSource, PipedLines
from server.terminal.open_backend import with_backend
from server.terminal.output import Output, standard_output
from server.terminal.settings import ChatSettings
from server.terminal.terminal_modes import quiet_keys


def chat(arguments: Sequence[str]) -> int:
    """Talk to a model; return 1 if an answer to a line of a pipe failed."""
    settings = parse_settings(ChatSettings, arguments, program="draftline chat")
    if settings.url is None:
        check_models(settings)
    output = standard_output()
    with quiet_keys():
        return with_backend(settings, output, lambda backend: run_chat(backend, settings, output))


async def run_chat(backend: AnswerBackend, settings: ChatSettings, output: Output) -> int:
    """Talk until the end of the input and return the exit code."""
    from server.terminal.chat import Chat

    is_interactive = sys.stdin.isatty() and output.is_terminal
    source = _open_editor(settings, output) if is_interactive else PipedLines(sys.stdin)
    chat = Chat(backend, source, output, settings)
    if is_interactive:
        chat.greet()
    all_came = await chat.run(is_interactive=is_interactive)
    return 0 if all_came or is_interactive else 1


def _open_editor(settings: ChatSettings, output: Output) -> MessageSource:
    from server.terminal.history import FileHistory, history_path
    from server.terminal.line_editor import LineEditor

    if settings.no_history:
        return LineEditor(None)
    history = FileHistory(history_path())
    if history.error is not None:
        output.note(history.error)
    return LineEditor(history)
