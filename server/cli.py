"""The `draftline` command. torch is imported only after the arguments are read."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from engine.interface.errors import DraftlineError
from engine.interface.version import installed_version
from server.settings import ServeSettings, unknown_variables
from server.terminal.settings import BenchSettings, ChatSettings, CompleteSettings

Command = Callable[[Sequence[str]], int]

_COMMANDS: Mapping[str, str] = {
    "serve": "serve a model over the OpenAI HTTP API",
    "chat": "talk to a model in the terminal",
    "complete": "continue a text",
    "models": "list the models that have a name",
    "bench": "measure how fast a model runs on this machine",
}
_SETTINGS = (ServeSettings, ChatSettings, CompleteSettings, BenchSettings)
_SIGINT_CODE, _SIGPIPE_CODE = 130, 141  # as a shell reports them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, or 2 after one line about what is wrong."""
    parsed, rest = _parser().parse_known_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in unknown_variables(os.environ, _SETTINGS):
        errors.print(f"[yellow]warning:[/yellow] {escape(line)}")
    try:
        return _find(parsed.command)(rest)
    except DraftlineError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        return _SIGINT_CODE
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail
        return _SIGPIPE_CODE


def _find(name: str) -> Command:
    """Import the module of a command, which has a function of its name."""
    command: Command = getattr(importlib.import_module(f"server.commands.{name}"), name)
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="draftline",
        description="An inference server for GPT-style language models.",
        epilog="`draftline COMMAND --help` lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"draftline {installed_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_line in _COMMANDS.items():
        commands.add_parser(name, help=help_line, add_help=False)
    return parser
