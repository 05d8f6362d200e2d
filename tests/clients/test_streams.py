"""Streams of both clients against a real socket; every test runs once for each of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from draftline_client import APIConnectionError, ClosedError, ProtocolError, StreamBrokenError, StreamError

HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"
HELLO = [{"role": "user", "content": "Hello"}]


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def text(piece: str, finish_reason: str | None = None) -> bytes:
    return event({**HEAD, "choices": [{"index": 0, "text": piece, "finish_reason": finish_reason}]})


def delta(finish_reason: str | None = None, **fields: str) -> bytes:
    return event({**HEAD, "choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]})


def texts(stream: Any) -> list[str]:
    return [chunk.choices[0].text for chunk in stream]


def test_a_streamed_completion(server: Any, client: Any) -> None:
    usage = event({**HEAD, "choices": [], "usage": USAGE})
    server.then(server.stream(text("Hel"), text("lo"), text("", "stop"), usage, DONE))
    stream = client.completions.create(prompt="p", stream=True, stream_options={"include_usage": True})
    assert stream.request_id == "req-7"
    assert stream.response.headers["Content-Type"] == "text/event-stream"
    chunks = list(stream)
    assert [chunk.choices[0].text for chunk in chunks[:3]] == ["Hel", "lo", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:3]] == [None, None, "stop"]
    assert chunks[3].choices == ()
    assert chunks[3].usage.total_tokens == 5
    assert chunks[0].request_id == "req-7"
    (request,) = server.requests
    assert request.body == {"prompt": "p", "stream": True, "stream_options": {"include_usage": True}}
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["accept-encoding"] == "identity"


def test_a_streamed_answer(server: Any, client: Any) -> None:
    pieces = [delta(role="assistant", content=""), delta(content="Hi"), delta("stop"), DONE]
    server.then(server.stream(*pieces))
    chunks = list(client.chat.create(messages=HELLO, stream=True))
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hi", None]
    assert chunks[2].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_bytes_split_anywhere(server: Any, client: Any, size: int) -> None:
    whole = b": hello\r\n\r\n" + text("naïve 🙂") + text("日本").replace(b"\n\n", b"\r\n\r\n") + DONE
    server.then(server.stream(*(whole[start : start + size] for start in range(0, len(whole), size))))
    assert texts(client.completions.create(prompt="p", stream=True)) == ["naïve 🙂", "日本"]


def test_a_chunk_is_given_before_the_next_is_sent(server: Any, client: Any) -> None:
    def step(exchange: Any) -> None:
        exchange.head(
            200, {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
        )
        exchange.send(text("first"))
        exchange.wait_for_release()
        exchange.send(text("second") + DONE)
        exchange.end()

    server.then(step)
    stream = client.completions.create(prompt="p", stream=True)
    assert next(stream).choices[0].text == "first"
    server.release.set()
    assert texts(stream) == ["second"]


def test_a_stream_read_to_its_end_keeps_the_connection(server: Any, client: Any) -> None:
    server.then(*[server.stream(text("a"), DONE, b": a late comment\n\n")] * 3)
    for _ in range(2):
        with client.completions.create(prompt="p", stream=True) as stream:
            assert texts(stream) == ["a"]
    stream = client.completions.create(prompt="p", stream=True)
    assert texts(stream) == ["a"]
    assert list(stream) == []
    stream.close()
    assert list(stream) == []
    assert server.num_connections == 1


@pytest.mark.parametrize("num_read", [0, 1])
def test_an_early_close_is_seen_by_the_server(server: Any, client: Any, num_read: int) -> None:
    server.then(server.stream(text("a"), text("b"), then="wait"))
    stream = client.completions.create(prompt="p", stream=True)
    assert [next(stream).choices[0].text for _ in range(num_read)] == ["a"][:num_read]
    stream.close()
    stream.close()
    assert server.disconnected.wait(20)
    with pytest.raises(ClosedError, match="the stream was closed before its end"):
        next(stream)


def test_leaving_the_block_closes_the_stream(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), then="wait"))
    with client.completions.create(prompt="p", stream=True) as stream:
        next(stream)
    assert server.disconnected.wait(20)
    with pytest.raises(ClosedError):
        next(stream)


@pytest.mark.parametrize("ends_with", ["end", "drop"])
def test_an_error_event_comes_after_the_good_chunks(server: Any, client: Any, ends_with: str) -> None:
    body = {"error": {"message": "the engine died", "type": "server_error", "param": None, "code": "dead"}}
    server.then(server.stream(text("a") + text("b") + b"event: error\n" + event(body), then=ends_with))
    stream = client.completions.create(prompt="p", stream=True)
    assert [next(stream).choices[0].text for _ in range(2)] == ["a", "b"]
    with pytest.raises(StreamError, match="the engine died") as caught:
        next(stream)
    error = caught.value
    assert (error.type, error.param, error.code, error.request_id) == ("server_error", None, "dead", "req-7")
    assert list(stream) == []


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (event({"error": {"message": "no event name"}}), "no event name"),
        (event({"error": "only text"}), "only text"),
        (b"event: error\ndata: not json\n\n", "the server ended the stream with an error: not json"),
        (b"event: error\ndata: {}\n\n", "the server ended the stream with an error"),
    ],
)
def test_other_shapes_of_an_error_event(server: Any, client: Any, frame: bytes, message: str) -> None:
    server.then(server.stream(frame, then="wait"))
    with pytest.raises(StreamError) as caught:
        next(client.chat.create(messages=HELLO, stream=True))
    assert caught.value.message == message
    assert server.disconnected.wait(20)


def test_a_dropped_connection_is_an_error_and_not_an_end(
    server: Any, client: Any, sleeps: list[float]
) -> None:
    server.then(server.stream(text("a"), then="drop"))
    stream = client.completions.create(prompt="p", stream=True)
    assert next(stream).choices[0].text == "a"
    with pytest.raises(APIConnectionError) as caught:
        next(stream)
    assert caught.value.request_sent
    assert sleeps == []


def test_an_end_without_done_is_an_error(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), b"data: [DONE]"))
    stream = client.completions.create(prompt="p", stream=True)
    next(stream)
    with pytest.raises(StreamBrokenError, match=r"reply did \(after 1 chunks, request id req-7\)"):
        next(stream)


def test_a_drop_after_done_lost_nothing(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), DONE, then="drop"))
    assert texts(client.completions.create(prompt="p", stream=True)) == ["a"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"data: {\n\n", "not JSON"),
        (b"data: []\n\n", "an array in place of an object"),
        (event({**HEAD, "choices": [{"index": 0}]}), r"lacks a required field at choices\[0\].text"),
        (b"data: " + b"x" * (9 * 2**20), "a line of more than 8388608 bytes"),
    ],
    ids=["not json", "no object", "no text", "too long"],
)
def test_a_frame_that_is_not_a_chunk(server: Any, client: Any, frame: bytes, message: str) -> None:
    server.then(server.stream(text("a") + frame, then="wait"))
    stream = client.completions.create(prompt="p", stream=True)
    assert next(stream).choices[0].text == "a"
    with pytest.raises(ProtocolError, match=message):
        next(stream)
    assert server.disconnected.wait(20)


def test_events_of_an_unknown_kind_are_passed_over(server: Any, client: Any) -> None:
    server.then(server.stream(b"event: ping\ndata: {}\n\n", text("a"), b"event: message\n" + text("b"), DONE))
    assert texts(client.completions.create(prompt="p", stream=True)) == ["a", "b"]


def test_a_reply_that_is_no_stream(server: Any, client: Any) -> None:
    server.then(server.json({"id": "x"}))
    with pytest.raises(ProtocolError, match=r"Content-Type is 'application/json' \(request id req-7\)"):
        client.completions.create(prompt="p", stream=True)


def test_closing_the_client_ends_its_streams(server: Any, connect: Callable[..., Any]) -> None:
    server.then(server.stream(text("a"), then="wait"))
    with connect() as client:
        stream = client.completions.create(prompt="p", stream=True)
        next(stream)
    assert server.disconnected.wait(20)
    stream.close()
