"""What a stranger may hold of a connection, and for how long: raw sockets against a real server."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from server.http_protocol import ConnectionLimits
from server.http_server import within_descriptors
from tests.fakes import FakeEngine, Script, say
from tests.server.harness import RunningServer, serving

LIMITS = ConnectionLimits(receipt_timeout=0.4, write_timeout=0.4)
COMPLETION = b'{"prompt": "x", "seed": 1, "max_tokens": 4}'
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serving(FakeEngine(), connections=LIMITS, loop=request.param) as running:
        yield running


def connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side ends."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def read_answer(connection: socket.socket) -> bytes:
    """Read one answer, whose head says how long it is."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + body


def refusal(received: bytes) -> tuple[int, str]:
    """Return status and code of an error in OpenAI's shape."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["message"]
    return int(head.split()[1]), error["code"]


def post(body: bytes = COMPLETION, *headers: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"host: x", b"content-type: application/json", *headers]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


def is_well(server: RunningServer) -> None:
    """Answer as ever."""
    assert (
        server.client.post("/v1/completions", json=json.loads(COMPLETION)).json()["choices"][0]["text"]
        == "c0s1"
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200,
        b"GET /health HTTP/1.1\r\nhost: x\r\na: " + b"b" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + (b"a: " + b"b" * 3000 + b"\r\n") * 30,
        b"A" * 100_000,
    ],
    ids=["many headers", "a long header", "a long path", "headers long together", "a long method"],
)
def test_a_head_without_end_is_refused(server: RunningServer, head: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(head)
        assert refusal(read_all(connection)) in ((431, "headers_too_large"), (400, "invalid_http"))
    is_well(server)


@pytest.mark.parametrize("tail", [b"a: b\r\n" * 300, b"a: " + b"b" * 500_000, b"5;" + b"x" * 500_000])
def test_trailers_and_extensions_of_chunks_without_end_are_refused(
    server: RunningServer, tail: bytes
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    head += b"content-type: application/json\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"2\r\n{}\r\n" + (tail if tail[:1] == b"5" else b"0\r\n" + tail))
        assert b"431" in read_all(connection).split(b"\r\n")[0]
    is_well(server)


def test_128_headers_and_long_ones_are_fine(server: RunningServer) -> None:
    with connect(server) as connection:
        headers = [b"a%d: %s" % (i, b"b" * 400) for i in range(124)]
        connection.sendall(post(COMPLETION, *headers))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_large_body_is_no_head(server: RunningServer) -> None:
    body = json.dumps({"prompt": "x" * 4000, "max_tokens": 4, "user": "u", "stop": ["y" * 250] * 16}).encode()
    body = body[:-1] + b" " * 500_000 + b"}"
    with connect(server) as connection:
        connection.sendall(post(body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "is_fine"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", False),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nHost: y\r\n\r\n", False),
        (b"GET /health HTTP/1.0\r\n\r\n", True),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", True),
        (b"nonsense\r\n\r\n", False),
        (b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: a\r\n\r\n", False),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", False),  # the beginning of TLS
    ],
)
def test_what_is_no_http_is_a_400_in_our_shape(server: RunningServer, head: bytes, is_fine: bool) -> None:
    with connect(server) as connection:
        connection.sendall(head)
        received = read_all(connection)
        if is_fine:
            assert received.startswith(b"HTTP/1.1 200")
        else:
            assert refusal(received) == (400, "invalid_http")


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_a_request_that_does_not_come_is_given_up(server: RunningServer, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        received = read_all(connection)
        assert 0.2 < time.monotonic() - started < 5
        assert received == b"" if not sent else refusal(received) == (408, "timeout")


def trickle(connection: socket.socket) -> float:
    """Send a byte now and then until the other side has had enough; return the seconds."""
    started = time.monotonic()
    while time.monotonic() - started < 5:
        try:
            connection.sendall(b"a")
        except OSError:
            break
        time.sleep(0.02)
    return time.monotonic() - started


def test_headers_that_trickle_are_given_up(server: RunningServer) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\na:")
        assert trickle(connection) < 3


def test_a_second_request_has_its_own_time(server: RunningServer) -> None:
    with connect(server) as connection:
        for _ in range(4):
            time.sleep(0.2)
            connection.sendall(post())
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"POST /v1/comp")
        assert refusal(read_all(connection)) == (408, "timeout")


def test_the_rest_of_a_refused_body_may_not_trickle_for_ever(server: RunningServer) -> None:
    head = post(COMPLETION).replace(b"application/json", b"text/plain").partition(b"content-length")[0]
    with connect(server) as connection:
        connection.sendall(head + b"content-length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 415")
        assert trickle(connection) < 3


def test_an_answer_that_takes_long_keeps_its_connection(server: RunningServer) -> None:
    server.engine.hold()
    with connect(server) as connection:
        connection.sendall(post())
        server.engine.wait_until(lambda: server.engine.num_open == 1)
        time.sleep(1.0)  # longer than every limit
        server.engine.release()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def flood(_: Any) -> Script:
    return say("x" * 200_000, tokens_per_step=200)


def test_a_stream_that_nobody_reads_is_ended_and_its_memory_freed(server: RunningServer) -> None:
    server.engine.script = flood
    with connect(server) as connection:
        body = json.dumps(
            {"prompt": "x", "stream": True, "max_tokens": 3000, "return_token_ids": True}
        ).encode()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(2):
            connection.sendall(post(body))  # its tokens are far more than the buffers hold
        server.engine.wait_until(lambda: bool(server.engine.requests))
        deadline = time.monotonic() + 10
        while len(server.server.server_state.connections) > 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.server.server_state.connections) == 0
    server.engine.wait_until(lambda: server.engine.num_open == 0)


def test_a_slow_reader_gets_all_of_it(server: RunningServer) -> None:
    server.engine.script = flood
    with connect(server) as connection:
        body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 3000}).encode()
        connection.sendall(post(body))
        received = b""
        while b"[DONE]" not in received:
            part = connection.recv(32768)
            assert part, "the server gave up on a client that reads"
            received += part
            time.sleep(0.005)


def test_beyond_the_limit_only_probes_are_answered() -> None:
    with serving(FakeEngine(), connections=ConnectionLimits(max_connections=3)) as server:
        held = [connect(server) for _ in range(3)]
        wait_for_connections(server, 3)
        with connect(server) as connection:
            connection.sendall(post())
            assert refusal(read_all(connection)) == (429, "too_many_connections")
        for path in (b"/health", b"/ready/"):
            with connect(server) as connection:
                connection.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                received = read_all(connection)
                assert received.startswith(b"HTTP/1.1 200")
                assert b"connection: close" in received.lower()
        held[0].sendall(post())
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200"), "who was there before is served"
        for connection in held:
            connection.close()
        wait_for_connections(server, 0)
        is_well(server)


def test_far_beyond_the_limit_nobody_is_heard() -> None:
    with serving(FakeEngine(), connections=ConnectionLimits(max_connections=2)) as server:
        held = [connect(server) for _ in range(60)]
        closed = 0
        for connection in held[40:]:
            connection.settimeout(5)
            closed += read_all(connection) == b""
        assert closed == 20
        assert len(server.server.server_state.connections) <= 34
        for connection in held:
            connection.close()


def wait_for_connections(server: RunningServer, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(server.server.server_state.connections) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.server.server_state.connections) == count


def test_many_slow_and_idle_connections_hold_up_nobody() -> None:
    limits = ConnectionLimits(max_connections=400, receipt_timeout=30.0)
    with serving(FakeEngine(), connections=limits) as server:
        slow = [connect(server) for _ in range(300)]
        for number, connection in enumerate(slow):
            if number % 3 == 0:
                connection.sendall(post()[:40])
        threads = [threading.Thread(target=is_well, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        for connection in slow:
            connection.close()


def test_connections_stay_below_the_open_files_that_the_process_may_have(monkeypatch, caplog) -> None:
    import resource

    limits = {"now": (100, 1000)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.update(now=pair))
    assert within_descriptors(ConnectionLimits(max_connections=500)).max_connections == 500
    assert limits["now"] == (756, 1000)
    assert not caplog.records
    assert within_descriptors(ConnectionLimits(max_connections=5000)).max_connections == 744
    assert limits["now"] == (1000, 1000)
    assert "ulimit -n" in caplog.text
    limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert within_descriptors(ConnectionLimits(max_connections=5000)).max_connections == 5000


def test_an_idle_connection_is_not_closed_before_its_client_would_close_it() -> None:
    """httpx keeps one for 5 s, balancers for 60: no request may meet one that is being closed."""
    with serving(FakeEngine()) as server:
        assert server.server.config.timeout_keep_alive > 60
