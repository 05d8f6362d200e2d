"""The commands of a chat: what begins with a slash."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path

from pydantic import ValidationError

from server.terminal.conversation import (
    Conversation,
    ConversationFileError,
    explain,
    load,
    save,
)
from server.terminal.output import Output
from server.terminal.settings import AnswerParams
from server.terminal.status_line import SessionTotals

_OFF = ("off", "none")


class Next(Enum):
    """What a chat does after a command."""

    READ = "read"
    RETRY = "retry"
    LEAVE = "leave"


@dataclass(frozen=True)
class ChatState:
    """What commands look at and change."""

    conversation: Conversation
    totals: SessionTotals
    output: Output
    model: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: `usage` is what may follow its name."""

    run: Callable[[ChatState, str], Next]
    usage: str = ""
    help: str


def run_command(line: str, state: ChatState) -> Next:
    """Run the command that `line` begins with; one that is unknown is said to be."""
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        close = get_close_matches(name, COMMANDS, n=1)
        nearest = f"did you mean /{close[0]}? " if close else ""
        state.output.error(f"unknown command /{name}: {nearest}/help lists all; //text sends /text")
        return Next.READ
    return command.run(state, argument.strip())


def _help(state: ChatState, _argument: str) -> Next:
    for name, command in COMMANDS.items():
        usage = f"/{name} {command.usage}".rstrip()
        state.output.note(f"{usage:25} {command.help}")
    state.output.note(_KEYS)
    return Next.READ


_KEYS = '''
Enter sends. A new line: Alt-Enter, or Enter behind a trailing backslash, or
Enter anywhere between """ and """; pasted lines stay one message.
//text sends /text. Up and Down go through what was typed before, Ctrl-R
searches it, Tab completes commands.
Ctrl-C stops an answer and keeps what came of it; at the prompt it clears the
line, twice on an empty line it leaves, as Ctrl-D does. What is typed during an
answer is not shown then: it stands in the next line.'''


def _system(state: ChatState, argument: str) -> Next:
    conversation = state.conversation
    if argument:
        conversation.system = None if argument in _OFF else argument
    shown = "no system message" if conversation.system is None else f"system message: {conversation.system}"
    state.output.note(shown)
    return Next.READ


def _params(state: ChatState, argument: str) -> Next:
    words = argument.split()
    if len(words) % 2:
        state.output.error("pairs of a name and a value are needed, as /params temperature 0.3 top_p 0.9")
        return Next.READ
    changes = {
        name: None if value in _OFF else value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    _change_params(state, changes)
    return Next.READ


def _change_params(state: ChatState, changes: Mapping[str, str | None]) -> None:
    """Change all of them or none."""
    conversation = state.conversation
    try:
        conversation.params = AnswerParams.model_validate({**conversation.params.model_dump(), **changes})
    except ValidationError as error:
        known = ", ".join(AnswerParams.model_fields)
        state.output.error(f"{explain(error)}; the parameters are {known}")
        return
    values = conversation.params.model_dump()
    state.output.note(
        ", ".join(f"{name} {'default' if value is None else value}" for name, value in values.items())
    )


def _seed(state: ChatState, argument: str) -> Next:
    if argument:
        _change_params(state, {"seed": None if argument in _OFF else argument})
        return Next.READ
    seed = state.conversation.params.seed
    state.output.note("every answer draws its own seed" if seed is None else f"seed {seed} for every answer")
    return Next.READ


def _save(state: ChatState, argument: str) -> Next:
    may_overwrite = argument.startswith("-f ")
    name = argument.removeprefix("-f ").strip()
    if not name:
        state.output.error("a file is needed, as /save talk.json")
        return Next.READ
    path = Path(name).expanduser()
    existed = path.exists()
    try:
        save(state.conversation, path, model=state.model, may_overwrite=may_overwrite)
    except ConversationFileError as error:
        hint = f"; /save -f {name} overwrites it" if existed and not may_overwrite else ""
        state.output.error(f"{error}{hint}")
        return Next.READ
    word = "overwrote" if existed else "wrote"
    state.output.note(f"{word} {path}: {state.conversation.num_turns} messages and the parameters")
    return Next.READ


def _load(state: ChatState, argument: str) -> Next:
    if not argument:
        state.output.error("a file is needed, as /load talk.json")
        return Next.READ
    try:
        saved = load(Path(argument).expanduser())
    except ConversationFileError as error:
        state.output.error(str(error))
        return Next.READ
    state.conversation.replace(saved)
    by = "" if saved.model == state.model else f", with answers by {saved.model}"
    state.output.note(f"{state.conversation.num_turns} messages and the parameters{by}")
    return Next.READ


def _stats(state: ChatState, _argument: str) -> Next:
    for line in state.totals.lines():
        state.output.note(line)
    return Next.READ


def _clear(state: ChatState, _argument: str) -> Next:
    state.conversation.forget()
    state.output.note("forgotten")
    return Next.READ


def _retry(state: ChatState, _argument: str) -> Next:
    if state.conversation.params.seed is not None:
        state.output.note("the seed is fixed, so the same words come again: /seed off draws new ones")
    return Next.RETRY


def _exit(_state: ChatState, _argument: str) -> Next:
    return Next.LEAVE


COMMANDS: Mapping[str, Command] = {
    "help": Command(run=_help, help="this list"),
    "system": Command(run=_system, usage="[TEXT|off]", help="show or set the system message"),
    "params": Command(run=_params, usage="[NAME VALUE ...]", help="show or set; off: the default"),
    "seed": Command(run=_seed, usage="[N|off]", help="one seed for every answer: same words again"),
    "save": Command(run=_save, usage="[-f] FILE", help="write the conversation; -f overwrites"),
    "load": Command(run=_load, usage="FILE", help="go on with a saved conversation"),
    "stats": Command(run=_stats, help="tokens, speed and cache of this session"),
    "clear": Command(run=_clear, help="forget the conversation, keep the system message"),
    "reset": Command(run=_clear, help="the same"),
    "retry": Command(run=_retry, help="answer the last question again"),
    "exit": Command(run=_exit, help="leave"),
}
