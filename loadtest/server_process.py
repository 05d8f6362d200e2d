"""A server started for a comparison: its command, its life, and the memory and CPU of its process tree."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

START_TIMEOUT = 600.0  # seconds; vllm compiles for two to three minutes on two cores
STOP_TIMEOUT = 30.0


def end_servers_on_signals() -> None:
    """Let SIGTERM and SIGHUP leave the `with` blocks of servers: a paused one would stay for ever."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to start a server and what it serves."""

    name: str  # as in the table
    command: tuple[str, ...]
    port: int
    model: str  # for the field `model` of a request
    weight_bytes: int  # read once per decoded token at batch 1
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] = field(default_factory=dict)  # fields of each request; None leaves one out

    @property
    def base_url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.port}"


class ServerProcess:
    """One running server in a session of its own, whose processes can be stopped and continued together."""

    def __init__(self, spec: ServerSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.start_seconds = 0.0

    def __enter__(self) -> "ServerProcess":
        """Start it and wait until it is ready; raises RuntimeError with the end of its log."""
        started = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.spec.command,
                env={**os.environ, **self.spec.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(started + START_TIMEOUT)
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Return the process id, which is the session's too."""
        return self._process.pid

    def pause(self) -> None:
        """Stop every process of the server: it costs neither time nor memory bandwidth until resume()."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def memory_mb(self) -> float:
        """Return the proportional set size of all its processes."""
        return sum(_pss_kb(pid) for pid in server_processes(self.pid)) / 1024

    def _wait_until_ready(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self.spec.name} ended with code {self._process.returncode}:\n{self._log_end()}"
                )
            try:
                urllib.request.urlopen(self.spec.base_url + self.spec.ready_path, timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"{self.spec.name} was not ready after {START_TIMEOUT:.0f} s:\n{self._log_end()}")

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def _stop(self) -> None:
        """End the first process politely, then whatever is left."""
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in server_processes(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def running_draftline(model: str, port: int, *flags: str) -> Iterator[ServerProcess]:
    """Serve a model while the block runs; raises RuntimeError with its log's end if it does not start."""
    command = (sys.executable, "-m", "server", "serve", "--model", model, "--port", str(port), *flags)
    spec = ServerSpec(
        name="draftline", command=command, port=port, model=model, weight_bytes=0, ready_path="/ready"
    )
    with tempfile.TemporaryDirectory() as folder, ServerProcess(spec, Path(folder) / "log") as server:
        yield server


def server_processes(root: int) -> list[int]:
    """Return the processes of the session that `root` leads, and the descendants of `root` (Linux)."""
    found, children = [root], defaultdict[int, list[int]](list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, _, session, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        children[int(parent)].append(pid)
        if int(session) == root and pid != root:
            found.append(pid)
    for pid in found:
        found.extend(child for child in children.get(pid, ()) if child not in found)
    return found


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
