"""EngineProcess: an engine in a process of its own, started again when it fails."""

import contextlib
import itertools
import logging
import os
import queue
import socket
import subprocess
import tempfile
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from hashlib import blake2b

import msgspec

from engine.bridge.messages import (
    AbortRequests,
    AddRequests,
    CloseEngine,
    EngineDied,
    FromEngine,
    ToEngine,
)
from engine.bridge.outbox import Outbox
from engine.bridge.step_manifest import NUM_BYTES, StepManifest
from engine.bridge.wire import (
    CancelGrammar,
    Channel,
    CompileGrammar,
    Delivery,
    EngineReady,
    GrammarCompiled,
    Heartbeat,
    LoadFailed,
    LogLine,
    StartEngine,
    WireMessage,
    encode,
)
from engine.interface.cancellation import Cancellation
from engine.interface.errors import (
    CancelledError,
    CheckpointError,
    ConfigError,
    DraftlineError,
    EngineRestartingError,
    RequestError,
    StepError,
)
from engine.interface.grammar_spec import GrammarSpec
from engine.interface.info import EngineInfo
from engine.interface.limits import EngineLimits
from engine.interface.outputs import FinishReason, GenerationRequest
from engine.interface.stats import EngineStats

logger = logging.getLogger(__name__)

_MAX_RESTARTS, _RESTART_WINDOW = 5, 600.0
_BACKOFF = (0.0, 0.5, 2.0, 5.0, 10.0)  # seconds before each restart of the window
_LOOK = 1.0  # seconds between looks at how long the present step runs
_SILENCE = 15.0  # seconds without a heartbeat: the process is stuck where not even its other threads run
_MAX_CRASHES = 2  # of steps with a request in them; then it is refused
_MAX_REMEMBERED = 1024
_COMPILE_TIMEOUT = 30.0


class EngineProcess:
    """Starts `command`, tells it what to load, and carries messages to it and back.

    Blocks until the engine is loaded; raises CheckpointError or ConfigError. When the process ends, is silent
    or stays in one step for `stall_seconds`, every open request ends with an error and another one is
    started; after 5 of them within 10 minutes the engine is dead.
    """

    stream_interval = 0.0  # the process keeps what is not urgent

    def __init__(self, command: Sequence[str], start: StartEngine, *, stall_seconds: float = 60.0) -> None:
        self._command = command
        self._start = start
        self._stall_seconds = stall_seconds
        self._outboxes: dict[int, Outbox[FromEngine]] = {}
        self._numbers = itertools.count()
        self._compiling: dict[int, Future[None]] = {}
        self._open: dict[int, bytes] = {}  # digests of the open requests, by number
        self._crashes: Counter[bytes] = Counter()
        self._restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)
        self._lock = threading.Lock()
        self._death: str | None = None
        self._is_ready = False
        self._closing = threading.Event()
        self._stats = EngineStats()
        self._child = _Child(self._command, self._start)
        ready = self._await_ready_or_release(self._child)
        self.info: EngineInfo | None = ready.info
        self.limits: EngineLimits = ready.limits
        self.max_num_seqs = start.config.max_num_seqs
        self._is_ready = True
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    @property
    def death(self) -> str | None:
        """Why the engine is not started again; None while it lives or is being restarted."""
        return self._death

    @property
    def is_restarting(self) -> bool:
        """True after a failure, until the engine takes work again."""
        return not self._is_ready and self._death is None

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot that came."""
        return self._stats

    @property
    def pid(self) -> int:
        """Of the present process."""
        return self._child.process.pid

    def connect(self, outbox: Outbox[FromEngine]) -> int:
        """Add an outbox and return its number."""
        number = next(self._numbers)
        self._outboxes[number] = outbox
        return number

    def check(self, generations: Sequence[GenerationRequest]) -> None:
        """Raise StepError for a request that was in the step at two crashes: it would cause a third."""
        if self._crashes and any(self._crashes[_digest(one)] >= _MAX_CRASHES for one in generations):
            raise StepError("this request was in the step both times that the engine crashed: it is refused")

    def send(self, message: ToEngine) -> None:
        """Take a message; one that comes while the engine is gone is lost with what it belongs to."""
        with self._lock:
            if isinstance(message, AddRequests):
                for index, generation in enumerate(message.generations):
                    self._open[message.first + index] = _digest(generation)
            elif isinstance(message, AbortRequests):
                for number in message.numbers:
                    self._open.pop(number, None)
            self._child.send(message)

    def compile_grammar(self, spec: GrammarSpec, cancellation: Cancellation | None = None) -> None:
        """Compile a grammar so that requests find it; blocks.

        Raises RequestError, CancelledError, EngineUnavailableError.
        """
        cancellation = cancellation or Cancellation()
        number, future = next(self._numbers), Future[None]()
        self._compiling[number] = future
        try:
            if not self._is_ready:  # looked at after the future is there: a failure from now on ends it
                raise EngineRestartingError("the engine failed and is being restarted")
            self._child.send(CompileGrammar(number, spec))
            with cancellation.calling(lambda: self._child.send(CancelGrammar(number))):
                future.result(_COMPILE_TIMEOUT)
        except FutureTimeoutError:
            raise RequestError("the grammar was not compiled in time") from None
        finally:
            self._compiling.pop(number, None)

    def close(self, timeout: float | None = None) -> bool:
        """End the engine after its present step, or its process if that does not end; always True."""
        self._closing.set()
        self._child.send(CloseEngine())
        if not self._child.wait(timeout):
            self._child.kill()
        self._supervisor.join()
        self._child.release()
        return True

    # Below: the supervisor's thread.

    def _supervise(self) -> None:
        """Read what the process says until it ends, and start it again as long as that makes sense."""
        while True:
            reason = self._read_until_failure()
            self._is_ready = False
            if self._closing.is_set():
                return
            logger.error("the engine's process failed: %s", reason)
            self._blame(self._child.manifest.read())
            self._child.kill()
            self._child.release()
            if self._restarts_too_often():
                self._death = reason
                self._tell(EngineDied(reason))
                return
            self._tell(EngineDied(reason, is_restarting=True))
            if not self._restart():
                return

    def _read_until_failure(self) -> str:
        channel = self._child.channel
        heard = time.monotonic()
        while True:
            try:
                messages = channel.receive(_LOOK)
            except (EOFError, msgspec.DecodeError) as error:
                return self._child.why_it_ended() or str(error)
            now = time.monotonic()
            if messages:
                heard = now
            for message in messages:
                self._take(message)
            if now - heard > _SILENCE:
                return f"it said nothing for {_SILENCE:g} s"
            if self._stats.seconds_since_step > self._stall_seconds:
                return f"a step did not end within {self._stall_seconds:g} s"

    def _take(self, message: WireMessage) -> None:
        if isinstance(message, Heartbeat):
            self._stats = message.stats
        elif isinstance(message, Delivery):
            self._deliver(message)
        elif isinstance(message, GrammarCompiled):
            future = self._compiling.pop(message.number, None)
            if future is not None and message.reason is None:
                future.set_result(None)
            elif future is not None and message.is_cancelled:
                future.set_exception(CancelledError(message.reason))
            elif future is not None:
                future.set_exception(RequestError(message.reason or "", param=message.param))
        elif isinstance(message, LogLine):
            logging.getLogger(message.name).log(message.level, "%s", message.text)

    def _deliver(self, delivery: Delivery) -> None:
        items: list[FromEngine] = [*delivery.results, *delivery.refused, *delivery.looked_up]
        for results in delivery.results:
            for number, output in results.outputs:
                if output.finish_reason is not None:
                    self._acquit(self._open.pop(number, None), output.finish_reason)
        for refused in delivery.refused:
            for number in refused.numbers:
                self._open.pop(number, None)
        outbox = self._outboxes.get(delivery.outbox)
        if items and outbox is not None and not outbox.put(items, is_urgent=True):
            del self._outboxes[delivery.outbox]

    def _acquit(self, digest: bytes | None, reason: FinishReason) -> None:
        """Forget the crashes of a request that came to its end: it did not cause them."""
        if digest is not None and reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._crashes.pop(digest, None)

    def _blame(self, numbers: Sequence[int]) -> None:
        """Remember which requests were in the step; two crashes are one too many for a coincidence."""
        for number in numbers:
            digest = self._open.get(number)
            if digest is not None:
                self._crashes[digest] += 1
        while len(self._crashes) > _MAX_REMEMBERED:
            del self._crashes[next(iter(self._crashes))]

    def _tell(self, died: EngineDied) -> None:
        """End everything that is open."""
        with self._lock:
            self._open.clear()
        self._stats = self._stats._replace(num_requests_running=0, num_requests_waiting=0, step_started=None)
        for number in list(self._compiling):
            future = self._compiling.pop(number, None)
            if future is not None:
                future.set_exception(EngineRestartingError("the engine failed while it compiled the grammar"))
        for outbox in list(self._outboxes.values()):
            outbox.put((died,), is_urgent=True)

    def _restarts_too_often(self) -> bool:
        now = time.monotonic()
        recent = [moment for moment in self._restarts if now - moment < _RESTART_WINDOW]
        return len(recent) == _MAX_RESTARTS

    def _restart(self) -> bool:
        """Start the process again; False where it was closed meanwhile, or cannot be loaded any more."""
        now = time.monotonic()
        num_recent = sum(now - moment < _RESTART_WINDOW for moment in self._restarts)
        self._restarts.append(now)
        if self._closing.wait(_BACKOFF[min(num_recent, len(_BACKOFF) - 1)]):
            return False
        try:
            child = _Child(self._command, self._start)
            with self._lock:
                self._child = child
            if self._closing.is_set():  # close() may have seen the process before
                child.kill()
            self._await_ready_or_release(child)
        except (DraftlineError, OSError) as error:
            if not self._closing.is_set():
                self._death = str(error)
                self._tell(EngineDied(self._death))
            return False
        self._is_ready = True
        logger.warning("the engine was started again (%d of %d)", num_recent + 1, _MAX_RESTARTS)
        return True

    def _await_ready_or_release(self, child: "_Child") -> EngineReady:
        try:
            return self._await_ready(child)
        except BaseException:
            child.kill()
            child.release()
            raise

    def _await_ready(self, child: "_Child") -> EngineReady:
        """Wait until the model is loaded; raises what the loader raised."""
        while True:
            try:
                messages = child.channel.receive()
            except EOFError:
                raise ConfigError(f"the engine's process ended: {child.why_it_ended()}") from None
            for message in messages:
                if isinstance(message, EngineReady):
                    return message
                if isinstance(message, LoadFailed):
                    kinds = {"CheckpointError": CheckpointError}
                    raise kinds.get(message.kind, ConfigError)(message.reason)
                self._take(message)


class _Child:
    """One process, its socket, and the thread that sends to it."""

    def __init__(self, command: Sequence[str], start: StartEngine) -> None:
        first = encode([start])
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as file, theirs:
            file.truncate(NUM_BYTES)
            self.manifest = StepManifest(file.fileno())
            descriptors = (theirs.fileno(), file.fileno())
            self.process = subprocess.Popen(  # noqa: S603 - our own module
                [*command, *map(str, descriptors)], pass_fds=descriptors, stdin=subprocess.DEVNULL
            )
        self.channel = Channel(ours)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, name="sender", daemon=True).start()
        self._outgoing.put(first)

    def send(self, message: WireMessage) -> None:
        """Send a message from a thread of its own: a process that is stuck holds up nobody."""
        self._outgoing.put(encode([message]))

    def wait(self, timeout: float | None) -> bool:
        """Wait for the process to end."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def why_it_ended(self) -> str:
        """Return the signal or the exit code that ended the process."""
        if not self.wait(5.0):
            return "it closed its socket"
        code = self.process.returncode
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        """Give back what the process needed of this one."""
        self._outgoing.put(None)
        self.channel.close()
        self.manifest.close()

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # the reader sees the end
            while (frames := self._outgoing.get()) is not None:
                self.channel.send_frames(frames)


def _digest(generation: GenerationRequest) -> bytes:
    """Return what tells a request from another, whatever its seed, which most are given anew each time."""
    digest = blake2b(array("q", generation.prompt_token_ids).tobytes(), digest_size=16, key=_KEY)
    digest.update(str(replace(generation.params, seed=None)).encode())
    return digest.digest()


_KEY = os.urandom(16)
