"""A scripted HTTP server on a real socket, and both clients behind one blocking interface."""

import asyncio
import functools
import inspect
import json
import socket
import ssl
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from draftline_client import AsyncClient, Client

from tests.clients.real import RealServer, real_server

WAIT_SECONDS = 20.0  # only a broken test waits this long


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as the server saw it."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: Any
    connection: int  # which connection it came in on, counted from 0


class Exchange:
    """The server's end of one request; what a step of the script acts on."""

    def __init__(self, handler: BaseHTTPRequestHandler, server: "ScriptedServer") -> None:
        self._handler = handler
        self._server = server

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._handler.send_response(status)
        self._handler.send_header("X-Request-Id", "req-7")
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.head(status, {"Content-Length": str(len(body)), **headers})
        self._handler.wfile.write(body)

    def send(self, data: bytes) -> None:
        """Send one piece of a chunked body in a write of its own."""
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self._handler.wfile.flush()

    def end(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Break the connection without a proper end."""
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.connection.close()
        self._handler.close_connection = True

    def wait_for_disconnect(self) -> None:
        """Block until the client has left, then say so."""
        self._handler.connection.settimeout(WAIT_SECONDS)
        try:
            left = self._handler.connection.recv(1) == b""
        except ConnectionError:
            left = True
        self._handler.close_connection = True
        if left:
            self._server.disconnected.set()

    def wait_for_release(self) -> None:
        """Block until the test is over or calls `release.set()`."""
        self._server.release.wait(WAIT_SECONDS)


Step = Callable[[Exchange], None]


class ScriptedServer(ThreadingHTTPServer):
    """Answers request number i with step number i of its script."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script: deque[Step] = deque()
        self.otherwise: Step | None = None  # answers every request once the script is over
        self.requests: list[Received] = []
        self.num_connections = 0
        self.disconnected = threading.Event()
        self.release = threading.Event()
        self.failures: list[str] = []

    def then(self, *steps: Step) -> "ScriptedServer":
        self.script.extend(steps)
        return self

    def json(self, body: object, *, status: int = 200, **headers: str) -> Step:
        kind = {"Content-Type": "application/json", **_header_names(headers)}
        return lambda exchange: exchange.reply(status, json.dumps(body).encode(), kind)

    def raw(self, body: bytes, *, status: int = 200, **headers: str) -> Step:
        return lambda exchange: exchange.reply(status, body, _header_names(headers))

    def error(self, status: int, message: str = "no", **headers: str) -> Step:
        body = {"error": {"message": message, "type": "some_error", "param": "top_k", "code": "some_code"}}
        return self.json(body, status=status, **headers)

    def stream(self, *pieces: bytes, then: str = "end") -> Step:
        """Send the pieces as one event stream; `then` is end, drop, or wait (for the client to leave)."""

        def step(exchange: Exchange) -> None:
            exchange.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
            for piece in pieces:
                exchange.send(piece)
            {"end": exchange.end, "drop": exchange.drop, "wait": exchange.wait_for_disconnect}[then]()

        return step

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], ConnectionError):
            self.disconnected.set()  # the client left while a reply was written
            return
        self.failures.append(f"a step of the script raised for {client_address}")
        super().handle_error(request, client_address)


def _header_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = WAIT_SECONDS
    disable_nagle_algorithm = True
    server: ScriptedServer

    def setup(self) -> None:
        super().setup()
        self._connection_index = self.server.num_connections
        self.server.num_connections += 1

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        received = Received(
            method=self.command,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=json.loads(body) if body else None,
            connection=self._connection_index,
        )
        self.server.requests.append(received)
        step = self.server.script.popleft() if self.server.script else self.server.otherwise
        exchange = Exchange(self, self.server)
        if step is None:
            self.server.failures.append(f"nothing scripted for {received}")
            exchange.reply(599, b"nothing scripted", {})
        else:
            step(exchange)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture(scope="module", autouse=True)
def _one_tls_context() -> Iterator[None]:
    """Load the certificates once: httpx does it for every client, and it takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()
    assert not server.failures
    assert not server.script, "the client sent fewer requests than scripted"


class Blocking:
    """An asynchronous object behind the interface of its synchronous twin."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def _wrap(self, value: Any) -> Any:
        ours = type(value).__module__.startswith("draftline_client._async")
        ours = ours or inspect.ismethod(value) or inspect.isasyncgen(value)
        return Blocking(value, self._loop) if ours else value

    def __getattr__(self, name: str) -> Any:
        return self._wrap(getattr(self._target, "aclose" if name == "close" else name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._target(*args, **kwargs)
        return self._wrap(self._loop.run_until_complete(result) if inspect.isawaitable(result) else result)

    def __iter__(self) -> "Blocking":
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(self._target.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Any:
        return self._wrap(self._loop.run_until_complete(self._target.__aenter__()))

    def __exit__(self, *failure: Any) -> None:
        self._loop.run_until_complete(self._target.__aexit__(*failure))

    def __repr__(self) -> str:
        return repr(self._target)


@pytest.fixture
def sleeps() -> list[float]:
    """The seconds that a client from `connect` was told to sleep; none of them was slept."""
    return []


@pytest.fixture(params=["sync", "async"])
def build(request: pytest.FixtureRequest, sleeps: list[float]) -> Iterator[Callable[..., Any]]:
    """Build a client of either kind; both have the synchronous interface."""
    loop = asyncio.new_event_loop()
    clients = []

    def build_one(*, on_sleep: Callable[[], object] = lambda: None, **options: Any) -> Any:
        client: Any

        def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            on_sleep()

        async def sleep_async(seconds: float) -> None:
            sleep(seconds)

        if request.param == "sync":
            client = Client(sleep=sleep, **options)
        else:
            client = Blocking(AsyncClient(sleep=sleep_async, **options), loop)
        clients.append(client)
        return client

    yield build_one
    for client in clients:
        client.close()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture
def connect(server: ScriptedServer, build: Callable[..., Any]) -> Callable[..., Any]:
    """Build a client of the scripted server, which outlives it: an open connection would hold its end up."""
    return lambda **options: build(**{"base_url": server.url, **options})


@pytest.fixture(scope="session")
def real() -> Iterator[RealServer]:
    """The real server over a tiny model."""
    with real_server() as server:
        yield server


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()
