"""`draftline chat` with a scripted console and engine: history, commands, Ctrl-C, Ctrl-D."""

import io
import os
import signal

from rich.console import Console

from engine.interface.outputs import GenerationRequest
from server.settings import ChatSettings, parse_settings
from server.terminal_chat import TerminalChat
from tests.fakes import FakeEngine, Script, say
from tests.server.harness import served_model


class ScriptedConsole(Console):
    """A console whose user types these lines, or presses these keys."""

    def __init__(self, *typed: str | type[BaseException]) -> None:
        super().__init__(file=io.StringIO(), width=200)
        self._typed = list(typed)

    def input(self, *args: object, **kwargs: object) -> str:
        line = self._typed.pop(0)
        if isinstance(line, str):
            return line
        raise line

    @property
    def shown(self) -> str:
        return self.file.getvalue()


def talk(engine: FakeEngine, console: ScriptedConsole, *flags: str) -> str:
    settings = parse_settings(ChatSettings, flags, program="draftline chat")
    TerminalChat(served_model(engine), settings, console).run()
    return console.shown


def prompt_text(request: GenerationRequest) -> str:
    return bytes(token_id for token_id in request.prompt_token_ids if token_id < 256).decode()


def test_answers_stream_and_the_history_grows() -> None:
    engine = FakeEngine(lambda _: say("hello there", eos=True))
    shown = talk(
        engine, ScriptedConsole("hi", "", "again", EOFError), "--system", "be kind", "--temperature", "0"
    )
    assert shown.count("hello there") == 2
    assert "12 tokens" in shown
    assert len(engine.requests) == 2
    assert prompt_text(engine.requests[1]) == (
        "system\nbe kind\nuser\nhi\nassistant\nhello there\nuser\nagain\nassistant\n"
    )
    assert engine.requests[0].params.temperature == 0


def test_commands() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True))
    shown = talk(engine, ScriptedConsole("one", "/reset", "two", "/what", "/exit", "never read"))
    assert prompt_text(engine.requests[1]) == "user\ntwo\nassistant\n"
    assert "forgotten" in shown
    assert shown.count("/exit") == 2  # the greeting, and the answer to a command that is none


def test_ctrl_c_at_the_prompt_discards_the_line() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True))
    talk(engine, ScriptedConsole(KeyboardInterrupt, "hi", EOFError))
    assert len(engine.requests) == 1


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    engine = FakeEngine(lambda _: say("abcdef"))
    engine.hold()

    def press_ctrl_c() -> None:
        engine.step(3)
        os.kill(os.getpid(), signal.SIGINT)

    engine.when_open(1, press_ctrl_c)

    def script(request: GenerationRequest) -> Script:
        if len(engine.requests) == 1:
            engine.release()
        return say("abcdef")

    engine.script = script
    shown = talk(engine, ScriptedConsole("first", "second", EOFError))
    assert "stopped" in shown
    assert engine.num_aborted == 1
    assert len(engine.requests) == 2
    assert "first\nassistant\n" in prompt_text(engine.requests[1])
    assert shown.count("6 tokens") == 1


def test_an_error_is_shown_and_the_message_taken_back() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True), max_model_len=60)
    shown = talk(engine, ScriptedConsole("x" * 100, "short", EOFError))
    assert "maximum context length is 60 tokens" in shown
    assert prompt_text(engine.requests[0]) == "user\nshort\nassistant\n"
