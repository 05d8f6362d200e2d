"""What streams keep of their chunks: usage that nobody asked for, what had come when they break."""

import json
from typing import Any

import pytest
from draftline_client import (
    APITimeoutError,
    ClosedError,
    ProtocolError,
    Received,
    StreamBrokenError,
    StreamError,
    StreamTimeoutError,
    Usage,
)

HEAD = {"id": "cmpl-1", "created": 5, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"


def event(body: object, name: str = "") -> bytes:
    line = f"event: {name}\n".encode() if name else b""
    return line + b"data: " + json.dumps(body).encode() + b"\n\n"


def text(piece: str, index: int = 0, **fields: Any) -> bytes:
    return event({**HEAD, "choices": [{"index": index, "text": piece, **fields}]})


def delta(index: int = 0, *, finish_reason: str | None = None, **fields: Any) -> bytes:
    return event({**HEAD, "choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]})


LAST = event({**HEAD, "choices": [], "usage": USAGE})


def test_usage_that_nobody_asked_for_is_kept_and_not_shown(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), text("b", finish_reason="stop", seed=9), LAST, DONE))
    stream = client.completions.create(prompt="p", stream=True)
    assert [chunk.choices[0].text for chunk in stream] == ["a", "b"]
    assert stream.usage == Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
    reply = stream.get_final_completion()
    assert (reply.text, reply.seed, reply.usage.total_tokens, reply.request_id) == ("ab", 9, 5, "req-7")
    assert reply == stream.get_final_completion()


def test_usage_that_was_asked_for_is_shown(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), LAST, DONE))
    stream = client.completions.create(prompt="p", stream=True, stream_options={"include_usage": True})
    assert [len(chunk.choices) for chunk in stream] == [1, 0]
    assert stream.get_final_completion().text == "a"


def test_a_stream_without_usage_has_no_whole_reply(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), DONE))
    stream = client.completions.create(prompt="p", stream=True, stream_options={"include_usage": False})
    with pytest.raises(ProtocolError, match="the stream had no usage; leave stream_options out"):
        stream.get_final_completion()
    assert stream.text == "a"


def test_the_text_is_of_the_first_choice_and_comes_in_pieces(server: Any, client: Any) -> None:
    pieces = [text("x", 1), text("a"), text(""), text("y", 1), text("b"), LAST, DONE]
    server.then(server.stream(*pieces))
    stream = client.completions.create(prompt="p", stream=True, n=2)
    assert list(stream.text_deltas()) == ["a", "b"]
    assert stream.text == "ab"
    assert [choice.text for choice in stream.get_final_completion().choices] == ["ab", "xy"]


def test_warnings_and_unknown_fields_of_every_chunk_are_kept(server: Any, client: Any) -> None:
    def warned(name: str) -> bytes:
        return event({**HEAD, "choices": [], "warnings": [{"param": name, "message": "no"}], name: 1})

    server.then(server.stream(warned("a"), text("x"), warned("b"), LAST, DONE))
    reply = client.completions.create(prompt="p", stream=True).get_final_completion()
    assert [warning.param for warning in reply.warnings] == ["a", "b"]
    assert reply.extra == {"a": 1, "b": 1}


def test_what_was_read_before_is_in_the_whole_reply(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), text("b"), LAST, DONE))
    stream = client.completions.create(prompt="p", stream=True)
    next(stream)
    assert (stream.text, stream.usage) == ("a", None)
    assert stream.get_final_completion().text == "ab"


def test_thoughts_and_calls_are_put_together(server: Any, client: Any) -> None:
    call = {"index": 1, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"index": 0, "id": "c0", "type": "function", "function": {"name": "g", "arguments": ""}}
    pieces = [
        delta(role="assistant", content=""),
        delta(reasoning_content="let me "),
        delta(reasoning_content="see"),
        delta(tool_calls=[call]),
        delta(tool_calls=[{"index": 1, "function": {"arguments": '{"a"'}}, other]),
        delta(tool_calls=[{"index": 1, "function": {"arguments": ": 1}"}}]),
        delta(finish_reason="tool_calls"),
    ]
    server.then(server.stream(*pieces, LAST, DONE))
    answer = client.chat.create(messages=[], stream=True).get_final_completion()
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content, answer.text) == (None, "let me see", "")
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls]
    assert calls == [("c0", "g", ""), ("c1", "f", '{"a": 1}')]
    assert message.tool_calls[0].extra == {"type": "function"}


def test_asked_for_but_empty_is_not_none(server: Any, client: Any) -> None:
    nothing = [text("", finish_reason="stop"), LAST, DONE]
    server.then(server.stream(*nothing), server.stream(*nothing))
    options: dict[str, Any] = {"prompt": "p", "stream": True}
    choice = client.completions.create(**options).get_final_completion().choices[0]
    assert (choice.logprobs, choice.token_ids) == (None, None)
    stream = client.completions.create(**options, logprobs=0, return_token_ids=True)
    choice = stream.get_final_completion().choices[0]
    assert (choice.logprobs.tokens, choice.token_ids) == ((), ())


@pytest.mark.parametrize("then", ["drop", "end"])
def test_a_stream_that_breaks_says_what_had_come(server: Any, client: Any, then: str) -> None:
    begun = text("", prompt_token_ids=[1, 2], token_ids=[])
    pieces = [
        begun,
        text("a", token_ids=[3]),
        text("x", 1, finish_reason="stop"),
        text("b", token_ids=[4, 5]),
    ]
    server.then(server.stream(*pieces, then=then))
    stream = client.completions.create(prompt="p", stream=True, n=2, return_token_ids=True)
    with pytest.raises(StreamBrokenError, match=r"\(after 4 chunks, request id req-7\)") as caught:
        list(stream)
    assert caught.value.request_sent
    assert caught.value.received == Received(
        text="ab",
        texts=("ab", "x"),
        num_chunks=4,
        request_id="req-7",
        usage=None,
        finish_reasons=(None, "stop"),
        prompt_token_ids=(1, 2),
        token_ids=(3, 4, 5),
    )
    with pytest.raises(StreamBrokenError, match="the stream broke before"):
        stream.get_final_completion()


def test_the_last_usage_is_known_even_if_the_end_is_missing(server: Any, client: Any) -> None:
    server.then(server.stream(text("a", finish_reason="length"), LAST))
    with pytest.raises(StreamBrokenError) as caught:
        client.completions.create(prompt="p", stream=True).get_final_completion()
    received = caught.value.received
    assert (received.usage.completion_tokens, received.finish_reasons, received.num_chunks) == (
        2,
        ("length",),
        1,
    )


def test_a_pause_that_is_too_long_is_a_timeout_with_what_had_come(server: Any, connect: Any) -> None:
    server.then(server.stream(delta(content="Hi"), then="wait"))
    with pytest.raises(StreamTimeoutError, match="timed out") as caught:
        list(connect(timeout=0.3).chat.create(messages=[], stream=True))
    assert isinstance(caught.value, APITimeoutError)
    assert caught.value.received.text == "Hi"
    assert server.disconnected.wait(20)


def test_errors_of_the_server_and_of_the_protocol_say_it_too(server: Any, client: Any) -> None:
    failure = event({"error": {"message": "the engine died"}}, "error")
    server.then(server.stream(text("a"), failure), server.stream(text("b"), b"data: {\n\n", then="wait"))
    with pytest.raises(StreamError) as reported:
        list(client.completions.create(prompt="p", stream=True))
    assert reported.value.received.text == "a"
    with pytest.raises(ProtocolError) as misshapen:
        list(client.completions.create(prompt="p", stream=True))
    assert misshapen.value.received is not None
    assert misshapen.value.received.text == "b"


def test_a_closed_stream_has_no_whole_reply(server: Any, client: Any) -> None:
    server.then(server.stream(text("a"), then="wait"))
    stream = client.completions.create(prompt="p", stream=True)
    next(stream)
    stream.close()
    with pytest.raises(ClosedError):
        stream.get_final_completion()
    assert stream.text == "a"
    assert server.disconnected.wait(20)
