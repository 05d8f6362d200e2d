"""Bodies that are no JSON, the wrong type, too big, or cut short; raw sockets where needed."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from server.api.body import parse_json_object
from server.api.errors import ApiError
from server.serving import RequestLimits
from tests.fakes import FakeEngine
from tests.server.harness import RunningServer, serving

MAX_BODY_SIZE = 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(FakeEngine(), limits=RequestLimits(max_body_size=MAX_BODY_SIZE)) as running:
        yield running


def post(server: RunningServer, content: object, content_type: str = "application/json") -> httpx.Response:
    return server.client.post("/v1/completions", content=content, headers={"content-type": content_type})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"x"',
        b"null",
        b'{"prompt": "x"} trailing',
        b'{"prompt": "x",}',
        b'{"prompt": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 4000 + b"]" * 4000 + b"}",
        b'{"a":' * 1600 + b"1" + b"}" * 1600,
        b'{"prompt": NaN}',
    ],
)
def test_what_is_not_a_json_object_is_a_small_400(server: RunningServer, body: bytes) -> None:
    response = post(server, body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"
    assert len(response.content) < 500


@pytest.mark.parametrize("body", [b'{"prompt": "x", "prompt": "y"}', b'{"a": {"b": 1, "b": 1}}'])
def test_a_key_may_not_come_twice(server: RunningServer, body: bytes) -> None:
    response = post(server, body)
    assert response.status_code == 400
    assert "twice" in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "x" * 3000])
def test_another_content_type_is_a_415(server: RunningServer, content_type: str) -> None:
    response = post(server, b'{"prompt": "x"}', content_type)
    assert response.status_code == 415
    assert len(response.content) < 500


def test_json_may_say_its_charset(server: RunningServer) -> None:
    assert post(server, b'{"prompt": "x"}', "Application/JSON; charset=utf-8").status_code == 200


def test_compressed_bodies_are_refused(server: RunningServer) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post("/v1/completions", content=b"x", headers=headers)
    assert response.status_code == 415


@pytest.mark.parametrize("num_bytes", [MAX_BODY_SIZE + 1, 50_000_000])
def test_a_large_body_is_a_413_by_its_declared_length(server: RunningServer, num_bytes: int) -> None:
    response = post(server, b" " * num_bytes)
    assert response.status_code == 413
    assert str(MAX_BODY_SIZE) in response.json()["error"]["message"]


def test_a_large_body_is_a_413_as_it_streams_in(server: RunningServer) -> None:
    response = post(server, (b" " * 1000 for _ in range(1000)))
    assert response.status_code == 413


def test_the_largest_body_that_fits(server: RunningServer) -> None:
    body = json.dumps({"prompt": "x"}).encode()
    assert post(server, body.ljust(MAX_BODY_SIZE)).status_code == 200


def test_a_body_cut_short_asks_nothing_of_the_engine(server: RunningServer) -> None:
    num_requests = len(server.engine.requests)
    port = int(server.url.rpartition(":")[2])
    for head in (b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1F4\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                + head
                + b'{"prompt": "x'
            )
    assert server.client.get("/health").status_code == 200
    assert len(server.engine.requests) == num_requests


def test_deep_nesting_is_refused_whatever_the_stack_says() -> None:
    with pytest.raises(ApiError, match="nested too deeply"):
        parse_json_object(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_every_error_body_encodes_and_is_small() -> None:
    for message in ("\ud800" * 5000, "\x00" * 5000, "😀" * 5000, '"\\' * 5000):
        body = ApiError(400, message, param=message).body()
        assert len(body) < 4096
        assert json.loads(body)["error"]["message"].endswith("...")
