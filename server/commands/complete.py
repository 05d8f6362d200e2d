"""`draftline complete`: continue a text, on the standard output."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from engine.interface.errors import ConfigError
from server.commands.model_check import check_models
from server.settings import parse_settings
from server.terminal.answer_view import PlainView
from server.terminal.backend import AnswerBackend
from server.terminal.open_backend import with_backend
from server.terminal.output import Output, standard_output
from server.terminal.settings import CompleteSettings
from server.terminal.show_answer import ShownAnswer, show_answer
from server.terminal.status_line import status_line

_MAX_STDIN_BYTES = 4 * 2**20


def complete(arguments: Sequence[str]) -> int:
    """Print what follows a text; what is known of the answer goes to the standard error of a terminal."""
    settings = parse_settings(CompleteSettings, arguments, program="draftline complete")
    if settings.url is None:
        check_models(settings)
    prompt = _read_stdin() if settings.text == "-" else settings.text
    output = standard_output()
    answer = with_backend(settings, output, lambda backend: _complete(backend, prompt, settings, output))
    if sys.stderr.isatty():
        line = Text(status_line(answer.stats, answer.times), style="dim")
        Console(stderr=True).print(line, soft_wrap=True)
    return 0


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise ConfigError(f"the standard input has more than {_MAX_STDIN_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the standard input is not UTF-8: byte {error.start}") from error


async def _complete(
    backend: AnswerBackend, prompt: str, settings: CompleteSettings, output: Output
) -> ShownAnswer:
    answer = ShownAnswer()
    events = backend.complete(prompt, settings.params)
    await show_answer(events, PlainView(output), answer, is_terminal=output.is_terminal)
    return answer
