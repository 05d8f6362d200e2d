"""`draftline chat`: a conversation in the terminal with an engine in this process."""

import asyncio
import signal
import time

from rich.console import Console

from engine.interface.errors import DraftlineError
from server.admission import ServiceRate
from server.api.fields import ChatMessage
from server.api.generation import Generation
from server.api.preparation import prepare_chat
from server.api.scheduling import Deadline
from server.api.schemas import ChatCompletionRequest
from server.metrics import ServerMetrics
from server.serving import ServedModel
from server.settings import ChatSettings

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


class TerminalChat:
    """A conversation: what was said, and how the next answer is to be generated."""

    def __init__(self, model: ServedModel, settings: ChatSettings, console: Console) -> None:
        self._model = model
        self._settings = settings
        self._console = console
        self._metrics = ServerMetrics()
        self._messages: list[ChatMessage] = []
        self.reset()

    def run(self) -> None:
        """Read lines and answer them until /exit or the end of the input."""
        self._console.print(f"[bold]{self._model.name}[/bold]  {_HELP}", highlight=False)
        loop = asyncio.new_event_loop()
        try:
            while (line := self._read_line()) is not None:
                if line == "/reset":
                    self.reset()
                    self._console.print("[dim]forgotten[/dim]")
                elif line.startswith("/"):
                    self._console.print(f"[dim]{_HELP}[/dim]")
                elif line:
                    loop.run_until_complete(self._answer(line))
        finally:
            loop.close()

    def reset(self) -> None:
        """Forget everything but the system message."""
        system = self._settings.system
        self._messages = [] if system is None else [ChatMessage(role="system", content=system)]

    def _read_line(self) -> str | None:
        """Return the next line, None at the end; Ctrl-C discards what was typed."""
        try:
            line = self._console.input("[bold green]> [/bold green]").strip()
        except KeyboardInterrupt:
            self._console.print()
            return ""
        except EOFError:
            self._console.print()
            return None
        return None if line == "/exit" else line

    async def _answer(self, line: str) -> None:
        """Stream the answer to `line`; Ctrl-C keeps what was said up to then."""
        self._messages.append(ChatMessage(role="user", content=line))
        parts: list[str] = []
        task = asyncio.ensure_future(self._stream(parts))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            self._console.print("\n[dim]stopped[/dim]")
        except DraftlineError as error:
            self._console.print(f"[red]{error}[/red]", highlight=False)
            self._messages.pop()
            return
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        self._messages.append(ChatMessage(role="assistant", content="".join(parts)))

    async def _stream(self, parts: list[str]) -> None:
        started = time.perf_counter()
        with self._start(started) as generation:
            while not generation.is_finished:
                text = "".join([delta.text for delta in await generation.next_deltas()])
                parts.append(text)
                self._console.out(text, end="", highlight=False)
        usage, seconds = generation.usage, time.perf_counter() - started
        self._console.print(
            f"\n[dim]{usage.completion_tokens} tokens, {usage.completion_tokens / seconds:.1f} a second, "
            f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached[/dim]",
            highlight=False,
        )

    def _start(self, arrived: float) -> Generation:
        settings = self._settings
        body = ChatCompletionRequest.model_construct(
            messages=tuple(self._messages),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=settings.seed,
            max_tokens=settings.max_tokens,
        )
        preparation = prepare_chat(body, self._model, max_choices=1, salt=b"")
        return Generation(
            self._model.engine.generate(preparation.requests),
            preparation,
            tokenizer=self._model.tokenizer,
            metrics=self._metrics,
            rate=ServiceRate(),
            arrived=arrived,
            deadline=Deadline(None, arrived=arrived),
        )
