"""The engine's side of an engine process: an EngineThread behind a socket."""

import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.bridge.engine_thread import EngineThread
from engine.bridge.messages import (
    AbortRequests,
    AddRequests,
    CacheLookedUp,
    CloseEngine,
    EngineDied,
    FromEngine,
    LookUpCache,
    RequestsRefused,
    StepResults,
)
from engine.bridge.step_manifest import StepManifest
from engine.bridge.wire import (
    CancelGrammar,
    Channel,
    CompileGrammar,
    Delivery,
    EngineReady,
    GrammarCompiled,
    Heartbeat,
    LogLine,
    WireMessage,
)
from engine.core.engine import Engine
from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError, RequestError
from engine.interface.info import EngineInfo
from engine.interface.stats import EngineStats

_HEARTBEAT = 0.5  # seconds
_COMPILERS = 4


class Sender:
    """Sends what the engine has to say: at once what is urgent, else once in `interval` seconds."""

    def __init__(self, channel: Channel, *, interval: float) -> None:
        self._channel = channel
        self._interval = interval
        self._condition = threading.Condition()
        self._waiting: list[WireMessage] = []
        self._by_outbox: dict[int, Delivery] = {}
        self._is_urgent = False
        self._stats: Callable[[], EngineStats] | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Send what `stats` says from now on."""
        self._stats = stats

    def post(self, message: WireMessage) -> None:
        """Send a message at once."""
        with self._condition:
            self._waiting.append(message)
            self._is_urgent = True
            self._condition.notify()

    def deliver(self, outbox: int, items: Sequence[FromEngine], *, is_urgent: bool) -> None:
        """Send results with the next delivery of their outbox."""
        with self._condition:
            is_first = not self._by_outbox
            delivery = self._by_outbox.get(outbox)
            if delivery is None:
                delivery = self._by_outbox[outbox] = Delivery(outbox, [], [], [])
            for item in items:
                if isinstance(item, StepResults):
                    delivery.results.append(item)
                elif isinstance(item, RequestsRefused):
                    delivery.refused.append(item)
                elif isinstance(item, CacheLookedUp):
                    delivery.looked_up.append(item)
            if is_first or (is_urgent and not self._is_urgent):
                self._is_urgent |= is_urgent
                self._condition.notify()

    def close(self) -> None:
        """Send what waits, and no more."""
        with self._condition:
            self._is_closing = self._is_urgent = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._is_closing or self._waiting:
            with self._condition:
                while not self._is_urgent and (pause := last + self._patience() - time.monotonic()) > 0.0:
                    self._condition.wait(pause)
                messages = [*self._waiting, *self._by_outbox.values()]  # why a request ended is logged before
                self._by_outbox, self._waiting, self._is_urgent = {}, [], False
            last = time.monotonic()
            if self._stats is not None:  # first: who reads an end finds it counted
                messages.insert(0, Heartbeat(self._stats()))
            try:
                self._channel.send(messages)
            except OSError:
                os._exit(0)  # the server is gone
            except BaseException:  # noqa: BLE001 - printed
                traceback.print_exc()
                os._exit(1)  # what cannot be said must not be waited for

    def _patience(self) -> float:
        """Return the seconds that may pass between two sends."""
        return self._interval if self._by_outbox else _HEARTBEAT


class WireOutbox:
    """An outbox of the server's, as the engine thread sees it."""

    def __init__(self, sender: Sender, number: int) -> None:
        self._sender = sender
        self._number = number

    def put(self, items: Sequence[FromEngine], *, is_urgent: bool) -> bool:
        """Take items from the engine thread; a dead engine is a dead process."""
        if any(isinstance(item, EngineDied) for item in items):
            logging.shutdown()
            os._exit(1)
        self._sender.deliver(self._number, items, is_urgent=is_urgent)
        return True


class WireLog(logging.Handler):
    """Sends log records to the server, which has the format and the place for them."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # level and name go beside it
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._sender.post(LogLine(record.name, record.levelno, self.format(record)))


def serve_engine(
    engine: Engine, info: EngineInfo, channel: Channel, sender: Sender, manifest: StepManifest
) -> None:
    """Run the engine for the server at the other end, until it says so or is gone."""
    thread = EngineThread(engine, info=info)
    engine.on_step = lambda request_ids: _note(manifest, thread, request_ids)
    compiler = _Compiler(thread, sender)
    outboxes: dict[int, int] = {}
    sender.watch(lambda: thread.stats)
    sender.post(EngineReady(info, engine.limits))
    with contextlib.suppress(EOFError):
        while True:
            for message in channel.receive():
                if isinstance(message, CloseEngine):
                    thread.close()
                    return
                if isinstance(message, AddRequests | LookUpCache):
                    if message.outbox not in outboxes:
                        outboxes[message.outbox] = thread.connect(WireOutbox(sender, message.outbox))
                    thread.send(message._replace(outbox=outboxes[message.outbox]))
                elif isinstance(message, AbortRequests):
                    thread.send(message)
                elif isinstance(message, CompileGrammar):
                    compiler.start(message)
                elif isinstance(message, CancelGrammar):
                    compiler.cancel(message.number)


def _note(manifest: StepManifest, thread: EngineThread, request_ids: Sequence[int]) -> None:
    if request_ids:
        manifest.begin(thread.numbers_of(request_ids))
    else:
        manifest.end()


class _Compiler:
    """Compiles grammars for the server on threads of its own."""

    def __init__(self, thread: EngineThread, sender: Sender) -> None:
        self._thread = thread
        self._sender = sender
        self._pool = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="compile")
        self._cancellations: dict[int, Cancellation] = {}

    def start(self, message: CompileGrammar) -> None:
        """Compile a grammar and say what became of it."""
        cancellation = self._cancellations[message.number] = Cancellation()
        self._pool.submit(self._compile, message, cancellation)

    def cancel(self, number: int) -> None:
        """End what nobody waits for any more."""
        cancellation = self._cancellations.get(number)
        if cancellation is not None:
            cancellation.cancel()

    def _compile(self, message: CompileGrammar, cancellation: Cancellation) -> None:
        answer = GrammarCompiled(message.number)
        try:
            self._thread.compile_grammar(message.spec, cancellation)
        except CancelledError as error:
            answer = answer._replace(reason=str(error), is_cancelled=True)
        except RequestError as error:
            answer = answer._replace(reason=str(error), param=error.param)
        except BaseException as error:  # noqa: BLE001 - somebody waits for the answer
            answer = answer._replace(reason=f"the grammar cannot be compiled: {error}")
        self._cancellations.pop(message.number, None)
        self._sender.post(answer)
