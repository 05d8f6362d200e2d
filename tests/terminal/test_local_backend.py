"""A chat with an engine in this process: prompts, history, Ctrl-C and errors, over a scripted engine."""

import asyncio
import io
import os
import signal
from contextlib import aclosing

from rich.console import Console

from engine.interface.outputs import GenerationRequest
from server.settings import parse_settings
from server.terminal.backend import AnswerStats, Message, TextPiece
from server.terminal.chat import Chat
from server.terminal.local_backend import LocalBackend
from server.terminal.message_source import Interrupted
from server.terminal.output import Output
from server.terminal.settings import AnswerParams, ChatSettings
from tests.fakes import FakeEngine, Script, say
from tests.server.harness import served_model


class Typed:
    """Somebody who types these lines, or presses these keys, and leaves."""

    def __init__(self, *lines: str | Interrupted) -> None:
        self._lines = list(lines)

    async def read(self) -> str | None:
        if not self._lines:
            return None
        line = self._lines.pop(0)
        if isinstance(line, Interrupted):
            raise line
        return line


def talk(engine: FakeEngine, *lines: str | Interrupted, flags: tuple[str, ...] = ()) -> str:
    """Return what is shown of a chat."""
    settings = parse_settings(ChatSettings, flags, program="draftline chat")
    console = Console(file=io.StringIO(), width=200)
    chat = Chat(LocalBackend(served_model(engine)), Typed(*lines), Output(console, console), settings)
    asyncio.run(chat.run(is_interactive=True))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def prompt_text(request: GenerationRequest) -> str:
    return bytes(token_id for token_id in request.prompt_token_ids if token_id < 256).decode()


def test_answers_stream_and_the_history_grows() -> None:
    engine = FakeEngine(lambda _: say("hello there", eos=True))
    shown = talk(engine, "hi", "", "again", flags=("--system", "be kind", "--temperature", "0"))
    assert shown.count("hello there") == 2
    assert len(engine.requests) == 2
    assert prompt_text(engine.requests[1]) == (
        "system\nbe kind\nuser\nhi\nassistant\nhello there\nuser\nagain\nassistant\n"
    )
    assert engine.requests[0].params.temperature == 0


def test_clear_forgets_and_exit_leaves() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True))
    shown = talk(engine, "one", "/reset", "two", "/what", "/clear", "three", "/exit", "never read")
    assert prompt_text(engine.requests[1]) == "user\ntwo\nassistant\n"
    assert prompt_text(engine.requests[2]) == "user\nthree\nassistant\n"
    assert len(engine.requests) == 3
    assert shown.count("forgotten") == 2
    assert "unknown command /what" in shown


def test_retry_answers_the_last_question_again_with_a_new_seed() -> None:
    engine = FakeEngine(lambda request: say(f"<{len(engine.requests)}>", eos=True))
    talk(engine, "/retry", "one", "/retry", "two")
    assert prompt_text(engine.requests[1]) == prompt_text(engine.requests[0]) == "user\none\nassistant\n"
    assert engine.requests[1].params.seed != engine.requests[0].params.seed
    assert prompt_text(engine.requests[2]) == "user\none\nassistant\n<1>\nuser\ntwo\nassistant\n"


def test_ctrl_c_at_the_prompt_discards_the_line() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True))
    talk(engine, Interrupted(was_empty=False), "hi")
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
    shown = talk(engine, "first", "second")
    assert "stopped" in shown
    assert engine.num_aborted == 1
    assert len(engine.requests) == 2
    assert prompt_text(engine.requests[1]).startswith("user\nfirst\nassistant\nabc")


def test_an_error_is_shown_and_the_message_taken_back() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True), max_model_len=60)
    shown = talk(engine, "x" * 100, "short")
    assert "maximum context length is 60 tokens" in shown
    assert prompt_text(engine.requests[0]) == "user\nshort\nassistant\n"


def test_a_dead_engine_ends_answers_with_one_line() -> None:
    engine = FakeEngine(lambda _: say("ok", eos=True))
    engine.die()
    shown = talk(engine, "one", "two")
    assert shown.count("the engine died") == 2


def collect(engine: FakeEngine, params: AnswerParams) -> tuple[str, AnswerStats]:
    async def run() -> tuple[str, AnswerStats]:
        text, stats = "", AnswerStats()
        backend = LocalBackend(served_model(engine))
        async with aclosing(backend.chat([Message(role="user", content="hi")], params)) as events:
            async for event in events:
                if isinstance(event, TextPiece):
                    text += event.text
                else:
                    stats = event
        return text, stats

    return asyncio.run(run())


def test_stats_say_what_the_engine_did() -> None:
    engine = FakeEngine(lambda _: say("hello", tokens_per_step=3, cached=8, eos=True, num_drafted=3))
    text, stats = collect(engine, AnswerParams(seed=5))
    assert text == "hello"
    assert stats == AnswerStats(
        prompt_tokens=len(engine.requests[0].prompt_token_ids),
        completion_tokens=6,
        cached_tokens=8,
        drafted_tokens=6,
        accepted_tokens=4,
        seed=5,
        finish_reason="stop",
    )


def test_the_seed_of_an_answer_without_one_is_the_one_that_was_drawn() -> None:
    engine = FakeEngine(lambda _: say("hello", eos=True))
    _, stats = collect(engine, AnswerParams())
    assert stats.seed == engine.requests[0].params.seed is not None
