"""Loading while the port is open, and leaving in good order on a signal."""

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from engine.interface.errors import DraftlineError, EngineDeadError
from engine.loading.idle_memory import LOOK_SECONDS, IdleMemory
from server.http_protocol import ConnectionLimits, HttpProtocol
from server.listeners import TlsFiles
from server.serving import Phase, ServedModel, ServerState

logger = logging.getLogger(__name__)

_OTHER_DESCRIPTORS = 256  # files, pipes and sockets beside the clients'
_CLOSE_SECONDS = 2.0  # that the engine's last step gets after a drain
_LAST_RESORT = 4.0  # seconds after the shutdown timeout at which the process ends, whatever hangs
_WATCH_SECONDS = 0.2
_KEEP_ALIVE_SECONDS = 75
"""That an idle connection stays open: longer than clients and balancers (5 to 60 s) keep theirs.

Whoever closes first must be the one that sends: a request on its way to a connection that the server
closes at that moment is lost.
"""
_MIN_GRACE = 1
"""Seconds that answers already complete get to reach their clients, however little time is left."""


def run_server(
    app: ASGIApp,
    state: ServerState,
    listener: socket.socket,
    *,
    shutdown_timeout: float,
    load: Callable[[], ServedModel] | None = None,
    reload: Callable[[], None] | None = None,
    connections: ConnectionLimits | None = None,
    tls: TlsFiles | None = None,
) -> None:
    """Serve until a signal, then finish what is open within `shutdown_timeout` seconds.

    With `load`, the port answers while a thread loads the model. Raises what `load` raised. SIGHUP calls
    `reload`; where that raises a DraftlineError all stays as it is. A dead engine ends the server, too, once
    its streams are told: raises EngineDeadError. A second signal ends the process at once, and so does a
    shutdown that hangs.
    """
    server = DrainingServer(
        app,
        state,
        shutdown_timeout=shutdown_timeout,
        load=load,
        reload=reload,
        connections=within_descriptors(connections or ConnectionLimits()),
        leaves_when_dead=True,
        tls=tls,
    )
    try:
        server.run(sockets=[listener])
    finally:
        if state.model is not None and not state.model.engine.close(_CLOSE_SECONDS):
            leave("a step of the engine does not end")
    if server.load_error is not None:
        raise server.load_error
    if state.model is not None and state.model.engine.is_dead:
        raise EngineDeadError("the engine failed; the log says why")


def leave(reason: str) -> None:
    """End the process at once: a thread is stuck where no exit could wait for it."""
    logger.critical("%s: leaving at once", reason)
    logging.shutdown()
    os._exit(1)


def within_descriptors(connections: ConnectionLimits) -> ConnectionLimits:
    """Raise the process's limit of open files for so many connections, or return as many as it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections.max_connections + _OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            most = max(1, allowed - _OTHER_DESCRIPTORS)
            logger.warning(
                "max_connections: %d instead of %d, for this process may open %d files (ulimit -n)",
                most,
                connections.max_connections,
                allowed,
            )
            return replace(connections, max_connections=most)
    return connections


class DrainingServer(uvicorn.Server):
    """A uvicorn server that answers 503 while the streams that are open come to their end."""

    def __init__(
        self,
        app: ASGIApp,
        state: ServerState,
        *,
        shutdown_timeout: float,
        load: Callable[[], ServedModel] | None = None,
        reload: Callable[[], None] | None = None,
        connections: ConnectionLimits | None = None,
        leaves_when_dead: bool = False,
        tls: TlsFiles | None = None,
    ) -> None:
        protocol: Any = partial(HttpProtocol, limits=connections or ConnectionLimits())
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )
        self.load_error: Exception | None = None
        self._state = state
        self._shutdown_timeout = shutdown_timeout
        self._load = load
        self._reload = reload
        self._draining: asyncio.Task[None] | None = None
        self._leaves_when_dead = leaves_when_dead

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stop() or a signal."""
        if self._load is not None:
            threading.Thread(
                target=self._load_in_thread,
                args=(self._load, asyncio.get_running_loop()),
                name="loader",
                daemon=True,  # a signal need not wait for it
            ).start()
        watching = [asyncio.ensure_future(self._watch_memory())]
        if self._leaves_when_dead:
            watching.append(asyncio.ensure_future(self._watch_engine()))
        try:
            await super().serve(sockets)
        finally:
            for task in watching:
                task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal and leave at once on the second; uvicorn's own would cut streams."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            loop.add_signal_handler(number, self._handle_signal, number)
        if self._reload is not None:
            signals.append(signal.SIGHUP)
            loop.add_signal_handler(signal.SIGHUP, self._handle_hangup, self._reload)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to drain; must be called on the event loop."""
        self._state.start_draining()
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    def _handle_signal(self, number: int) -> None:
        if self._draining is not None:
            sys.stderr.write("second signal: leaving at once\n")
            sys.stderr.flush()
            os._exit(128 + number)
        logger.info("shutting down: open requests have %g s to finish", self._shutdown_timeout)
        last_resort = threading.Timer(
            self._shutdown_timeout + _LAST_RESORT, leave, ("the shutdown does not end",)
        )
        last_resort.daemon = True
        last_resort.start()
        self.stop()

    def _handle_hangup(self, reload: Callable[[], None]) -> None:
        try:
            reload()
        except DraftlineError as error:
            logger.error("the keys stay as they are: %s", error)
        else:
            logger.info("the keys were read again")

    async def _watch_engine(self) -> None:
        """End the server when its engine is dead; the streams that were open get the time to say so."""
        while self._state.phase is not Phase.DEAD:  # noqa: ASYNC110 - another thread decides
            await asyncio.sleep(_WATCH_SECONDS)
        logger.critical("the engine is dead: leaving")
        self.config.timeout_graceful_shutdown = _MIN_GRACE
        self.should_exit = True

    async def _watch_memory(self) -> None:
        """Give memory back that requests needed, once there are none."""
        while self._state.model is None:  # noqa: ASYNC110 - another thread loads it
            await asyncio.sleep(LOOK_SECONDS)
        memory = IdleMemory()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(memory.look, is_idle=self._state.is_idle)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._shutdown_timeout
        if self._state.model is not None:
            # The port stays open meanwhile: /ready and /metrics answer, new work gets a 503.
            finished = await self._state.model.engine.drain(self._shutdown_timeout)
            if not finished:
                logger.warning("some requests did not finish in time and were aborted")
        # What remains is sending; idle keep-alive connections are closed at once.
        self.config.timeout_graceful_shutdown = max(math.ceil(deadline - loop.time()), _MIN_GRACE)
        self.should_exit = True

    def _load_in_thread(self, load: Callable[[], ServedModel], loop: asyncio.AbstractEventLoop) -> None:
        try:
            model = load()
        except DraftlineError as error:
            self._call_on_loop(loop, self._fail, error)
        except Exception as error:
            logger.exception("loading the model failed")
            self._call_on_loop(loop, self._fail, error)
        else:
            self._call_on_loop(loop, self._state.publish, model)

    def _fail(self, error: Exception) -> None:
        self.load_error = error
        self.should_exit = True

    @staticmethod
    def _call_on_loop(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone already
            loop.call_soon_threadsafe(callback, *args)
