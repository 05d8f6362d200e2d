"""TrialProcesses: compile a grammar where a crash or a hang hurts nobody, before the engine does.

llguidance bounds most of its work and turns most failures into messages, but a long chain of rules
overflows the stack, which ends the process, and some numeric schemas compile for minutes. No thread can be
stopped; a process can.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from engine.interface.cancellation import Cancellation
from engine.interface.errors import CancelledError, EngineUnavailableError, RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.sampling.grammar_library import DEAD_END, build_tokenizer, new_matcher, refusal

if TYPE_CHECKING:
    from llguidance import LLMatcher

_CODE = (
    "import sys; sys.path[:] = sys.argv[1:]; from engine.sampling import grammar_trial; grammar_trial.main()"
)
_START_SECONDS = 60.0
_MEMORY_BYTES = 1 << 30
_STACK_BYTES = 2 << 20  # a quarter of what threads of the engine have: what passes here has room there
_NUM_STEPS = 16
_ACCEPTED = ""


class TrialProcesses:
    """Up to `max_processes`, each started when it is first needed and again after each time it was killed.

    They end with this object and with the process that started them. Safe to share: a check takes a process
    that is idle or waits for one.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], *, deadline_seconds: float, max_processes: int = 3
    ) -> None:
        self._token_bytes = token_bytes
        self._deadline_seconds = deadline_seconds
        self._idle: queue.LifoQueue[_TrialProcess] = queue.LifoQueue()  # the last one used is the warm one
        for _ in range(max_processes):
            self._idle.put(_TrialProcess(token_bytes))

    def check(self, spec: GrammarSpec, grammar: str, cancellation: Cancellation) -> None:
        """Compile `grammar`, the library's form of `spec`, and take its first steps.

        Raises RequestError when that fails, crashes or takes longer than the deadline, CancelledError,
        EngineUnavailableError when no process can be started.
        """
        message = json.dumps({"kind": spec.kind.value, "grammar": grammar})
        process = self._idle.get()
        try:
            answer = process.ask(message, self._deadline_seconds, cancellation)
        finally:
            self._idle.put(process)
        if cancellation.is_cancelled:
            raise CancelledError("nobody waits for this grammar any more")
        if answer is None:
            limit = f"{self._deadline_seconds:g} seconds"
            raise RequestError(refusal(spec, f"it takes more than {limit} to compile, or nests too deeply"))
        if answer != _ACCEPTED:
            raise RequestError(refusal(spec, answer))

    @property
    def pids(self) -> list[int]:
        """Of the processes that wait for work."""
        return [process.pid for process in self._idle.queue if process.pid is not None]

    def close(self) -> None:
        """End the processes that wait for work; the next check starts them again."""
        for process in list(self._idle.queue):
            process.stop()


class _TrialProcess:
    """One process; belongs to whoever took it."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., _TrialProcess] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if it was started."""
        return None if self._process is None else self._process.pid

    def ask(self, message: str, seconds: float, cancellation: Cancellation) -> str | None:
        """Send a line and return the answer; None when the process died or had to be killed."""
        if cancellation.is_cancelled:
            return None
        process = self._running()
        with cancellation.calling(process.kill):
            answer = _ask(process, message, seconds)
        if answer is None:
            self.stop()
        return answer

    def stop(self) -> None:
        """End the process, which the next question starts again."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        try:
            process = subprocess.Popen(  # noqa: S603 - our own code in our own interpreter
                [sys.executable, "-c", _CODE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is for the server
            )
        except OSError as error:
            raise EngineUnavailableError(f"no process to check grammars in: {error}") from None
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        vocabulary = json.dumps([token.decode("latin-1") for token in self._token_bytes])
        if _ask(process, vocabulary, _START_SECONDS) is None:
            self.stop()
            raise EngineUnavailableError("the process that checks grammars does not start; see llguidance")
        return process


def _ask(process: "subprocess.Popen[bytes]", message: str, seconds: float) -> str | None:
    """Send a line and return the answer; None when the process died or had to be killed."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, expire)
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            _write_line(_pipe(process.stdin), message)
        answer = _pipe(process.stdout).readline()
    finally:
        timer.cancel()
        timer.join()
    if expired.is_set() or not answer.endswith(b"\n"):
        return None
    return str(json.loads(answer))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            _pipe(pipe).close()


def _write_line(pipe: IO[bytes], message: str) -> None:
    pipe.write(message.encode() + b"\n")
    pipe.flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def main() -> None:
    """Serve trials on standard input and output until the input ends; runs in a process of its own."""
    _limit_resources()
    vocabulary = json.loads(sys.stdin.buffer.readline())
    tokenizer = build_tokenizer([token.encode("latin-1") for token in vocabulary])
    _write_line(sys.stdout.buffer, json.dumps(_ACCEPTED))

    def serve() -> None:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            matcher = new_matcher(tokenizer, request["grammar"], GrammarKind(request["kind"]))
            _write_line(sys.stdout.buffer, json.dumps(_failure(matcher)))

    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


def _failure(matcher: "LLMatcher") -> str:
    """Take the first steps, always with the first token allowed, and return what went wrong."""
    step = 0
    while step < _NUM_STEPS:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error() or matcher.is_stopped():
            break
        matcher.consume_token((mask & -mask).bit_length() - 1)
        step += 1
    # Later on a vocabulary without some byte ends one path, not the grammar.
    if not matcher.is_error() or (step > 0 and matcher.get_error().startswith(DEAD_END)):
        return _ACCEPTED
    return matcher.get_error()


def _limit_resources() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not every system has every limit
        import resource

        os.nice(5)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
