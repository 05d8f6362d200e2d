import itertools

import pytest
from draftline_client import ProtocolError
from draftline_client._sse import Event, EventDecoder
from hypothesis import given
from hypothesis import strategies as st


def decode(*pieces: bytes, max_event_bytes: int = 1000) -> list[Event]:
    decoder = EventDecoder(max_event_bytes=max_event_bytes)
    return [event for piece in pieces for event in decoder.feed(piece)]


def decode_whole(stream: bytes) -> list[Event]:
    """The slow twin: the standard's algorithm over the whole text at once."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events, data, name = [], "", ""
    for line in lines:
        if line == "":
            if data != "":
                events.append(Event(data=data[:-1], name=name or "message"))
            data, name = "", ""
            continue
        field, value = line.split(":", 1) if ":" in line else (line, "")
        value = value.removeprefix(" ")
        if field == "data":
            data += value + "\n"
        elif field == "event":
            name = value
    return [event for event in events if event.data]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [Event(data="a")]),
        (b"data:a\n\n", [Event(data="a")]),
        (b"data:  a \n\n", [Event(data=" a ")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [Event(data="a"), Event(data="b"), Event(data="c")]),
        (b"data: a\ndata: b\ndata\n\n", [Event(data="a\nb\n")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(data="a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(data="a")]),
        (b": keep-alive\n\n: again\r\n\r\ndata: a\n\n", [Event(data="a")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [Event(data="a", name="error"), Event(data="b")]),
        (b"event: lonely\n\ndata: b\n\n", [Event(data="b")]),
        (b"id: 7\nretry: 10\nother: x\nno colon\ndata: a\n\n", [Event(data="a")]),
        (b"data: a: b\n\n", [Event(data="a: b")]),
        (b"data: [DONE]\n\n", [Event(data="[DONE]")]),
        (b"data: a\n\ndata: unfinished\n", [Event(data="a")]),
        (b"data: a\n\ndata: unfini", [Event(data="a")]),
        ("data: naïve 🙂\n\n".encode(), [Event(data="naïve 🙂")]),
        (b"data: \xff\n\n", [Event(data="\ufffd")]),
        (b"data:\n\n", []),
        (b"", []),
    ],
)
def test_events_of_a_stream(stream: bytes, expected: list[Event]) -> None:
    assert decode(stream) == expected
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == expected
    assert decode_whole(stream) == expected


PIECES = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"event: error",
        b"event:",
        b":",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        "é".encode(),
        "🙂".encode(),
        b"\xf0\x9f",
        b"[DONE]",
        b"{}",
        b"id: 1",
        b"x",
        b"\x00",
    ]
)
STREAMS = st.lists(PIECES, max_size=40).map(b"".join)


@given(STREAMS, st.lists(st.integers(min_value=0, max_value=200), max_size=10))
def test_any_split_gives_the_events_of_the_whole(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert decode(*pieces) == decode_whole(stream)


@given(st.binary(max_size=80))
def test_any_bytes_are_decoded_as_by_the_standard(stream: bytes) -> None:
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == decode_whole(stream)


def events_and_failure(*pieces: bytes) -> tuple[list[Event], bool]:
    decoder = EventDecoder(max_event_bytes=20)
    events: list[Event] = []
    try:
        for piece in pieces:
            for event in decoder.feed(piece):
                events.append(event)  # noqa: PERF402 - keeps what came before the error
    except ProtocolError:
        return events, True
    return events, False


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: 34567890123456\n\n", ([Event(data="34567890123456")], False)),
        (b"data: a\n\ndata: 345678901234567\n\n", ([Event(data="a")], True)),
        (b": comments are bounded too\n\n", ([], True)),
        (b"data: a\n\n" + b"no line end in here at all", ([Event(data="a")], True)),
        (b"data: 0123456789\ndata: 012345678\n\n", ([], True)),
        (b"data: 0123456789\ndata: 01234567\n\n" * 3, ([Event(data="0123456789\n01234567")] * 3, False)),
    ],
)
def test_lines_and_events_are_bounded_wherever_the_bytes_split(
    stream: bytes, expected: tuple[list[Event], bool]
) -> None:
    assert events_and_failure(stream) == expected
    assert events_and_failure(*(stream[i : i + 1] for i in range(len(stream)))) == expected
