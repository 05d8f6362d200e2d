"""Clients that leave, engines that die under an open stream."""

import logging
import socket
import struct
from typing import Literal

import pytest

from server.api.chunks import ChunkWriter
from tests.fakes import FakeEngine, say
from tests.server.harness import RunningServer, serving


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))


def send_completion(connection: socket.socket, *, stream: bool) -> None:
    body = b'{"prompt": "x", "max_tokens": 1000, "stream": %s}' % (b"true" if stream else b"false")
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_client_that_leaves_frees_its_request_without_another_step(stream: bool, steps: int) -> None:
    engine = FakeEngine(lambda _: say("x" * 1000))
    engine.hold()
    with serving(engine) as server:
        with connect(server) as connection:
            send_completion(connection, stream=stream)
            engine.wait_until(lambda: engine.num_open == 1)
            engine.step(steps)
            if stream and steps:
                assert connection.recv(1)
        engine.wait_until(lambda: engine.num_open == 0)
        assert engine.num_aborted == 1
        assert engine.num_delivered_steps == steps
        metrics = server.client.get("/metrics").text
        assert 'draftline_requests_disconnected_total{model_name="fake"} 1.0' in metrics
        assert 'draftline_request_success_total{finished_reason="abort",model_name="fake"} 1.0' in metrics


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_only_ends_its_sending_side_gets_its_whole_answer(
    stream: bool, loop: Literal["uvloop", "asyncio"]
) -> None:
    """As `nc -N` does; its FIN looks like that of a client that left."""
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine, loop=loop) as server, connect(server) as connection:
        send_completion(connection, stream=stream)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"  # which says that it is heard
        engine.wait_until(lambda: engine.num_open == 1)
        engine.release()
        answer = read_to_end(connection)  # which ends: no other request can come
        assert server.state.metrics.num_disconnected == 0
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"[DONE]" in answer if stream else b'"text":"hello"' in answer


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_ends_its_sending_side_and_leaves_later_frees_its_request(
    loop: Literal["uvloop", "asyncio"],
) -> None:
    engine = FakeEngine(lambda _: say("x" * 1000))
    engine.hold()
    with serving(engine, loop=loop) as server:
        with connect(server) as connection:
            send_completion(connection, stream=False)
            connection.shutdown(socket.SHUT_WR)
            engine.wait_until(lambda: engine.num_open == 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        engine.wait_until(lambda: engine.num_open == 0)
        assert engine.num_aborted == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
        b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 15\r\n\r\n{"prompt": "x"}',
        b"",
    ],
    ids=["body not whole", "knows no interim response", "no request"],
)
def test_where_nothing_can_be_asked_the_end_of_sending_is_the_end(sent: bytes) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine) as server, connect(server) as connection:
        connection.sendall(sent)
        if b"1.0" in sent:
            engine.wait_until(lambda: engine.num_open == 1)
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
        engine.wait_until(lambda: engine.num_open == 0)


def test_others_go_on_when_one_leaves() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine) as server, connect(server) as stays:
        with connect(server) as leaves:
            send_completion(stays, stream=True)
            send_completion(leaves, stream=True)
            engine.wait_until(lambda: engine.num_open == 2)
            engine.step()
        engine.wait_until(lambda: engine.num_open == 1)
        assert server.client.get("/health").status_code == 200
        engine.release()
        answer = b""
        while b"[DONE]" not in answer:
            answer += stays.recv(65536)
        assert answer.count(b'"text":"') == len("hello") + 1


def test_after_many_disconnects_nothing_is_left() -> None:
    engine = FakeEngine(lambda _: say("x" * 1000))
    engine.hold()
    with serving(engine) as server:
        for _ in range(5):
            connections = [connect(server) for _ in range(10)]
            for number, connection in enumerate(connections):
                send_completion(connection, stream=number % 2 == 0)
            engine.wait_until(lambda: engine.num_open == 10)
            for connection in connections:
                connection.close()
            engine.wait_until(lambda: engine.num_open == 0)
        assert engine.num_aborted == 50
        engine.release()
        assert server.client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
        assert server.state.metrics.num_disconnected == 50


def test_a_client_that_does_not_read_holds_up_nobody_and_loses_nothing() -> None:
    num_bytes, per_step = 8_000_000, 10_000  # more than the sockets' buffers take
    long_answer = say("x" * num_bytes, tokens_per_step=per_step)
    engine = FakeEngine(lambda _: long_answer)
    engine.hold()
    with serving(engine) as server, connect(server) as slow:
        send_completion(slow, stream=True)
        engine.wait_until(lambda: engine.num_open == 1)
        engine.release()
        engine.wait_until(lambda: engine.num_open == 0)  # generated, though nobody reads
        assert server.client.get("/health").status_code == 200
        received = bytearray()
        while b"data: [DONE]" not in received[-100:]:
            received += slow.recv(1 << 20)
    assert received.count(b"x" * per_step) == num_bytes // per_step


def test_an_error_after_the_stream_began_is_an_event() -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()
    with serving(engine) as server:
        engine.when_open(1, engine.step)
        body = {"prompt": "x", "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            engine.die()
            text = response.read().decode()
    assert "[DONE]" not in text
    _, _, last = text.rstrip().rpartition("\n\n")
    assert last.startswith('event: error\ndata: {"error": ')


def test_a_bug_in_the_middle_of_a_stream_is_logged_and_ends_it_with_an_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()

    def fail(_writer: ChunkWriter, _usage: object) -> bytes:
        raise ZeroDivisionError("scripted")

    monkeypatch.setattr(ChunkWriter, "closing", fail)
    with serving(engine) as server:
        engine.when_open(1, engine.release)
        response = server.client.post("/v1/completions", json={"prompt": "x", "stream": True})
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert "event: error" in response.text
    assert "scripted" not in response.text
    assert "ZeroDivisionError: scripted" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_the_log_line_of_a_request_counts_its_tokens(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(FakeEngine(lambda _: say("hello"))) as server:
        body = {"prompt": "abc", "stream": stream, "max_tokens": 5}
        assert server.client.post("/v1/completions", json=body).status_code == 200
    assert "prompt=3 completion=5 cached=0" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_byte_has_a_status(stream: bool) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    engine.hold()

    with serving(engine) as server:
        engine.when_open(1, engine.die)
        response = server.client.post("/v1/completions", json={"prompt": "x", "stream": stream})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "dead"
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/ready").status_code == 503
        again = server.client.post("/v1/completions", json={"prompt": "x"})
        assert again.status_code == 503


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_is_a_500_in_the_usual_shape_and_logged(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(lambda _: say("hello"))
    with serving(engine) as server:
        engine.script = lambda _: 1 / 0
        response = server.client.post("/v1/completions", json={"prompt": "x", "stream": stream})
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "division" not in response.text
    assert "ZeroDivisionError" in caplog.text
