"""Events from bytes that are cut anywhere."""

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.terminal.backend import AnswerError
from server.terminal.sse import Event, EventReader

STREAM = (
    b": a comment\n\n"
    b'data: {"a": 1}\n\n'
    b"event: error\r\ndata: one\r\ndata:two\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b"data: \xc3\xa9\xff\rdata\r\r"
    b"data: [DONE]\n\ndata: without an end"
)
EVENTS = [
    Event("message", '{"a": 1}'),
    Event("error", "one\ntwo"),
    Event("message", "é�\n"),
    Event("message", "[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    reader, places = EventReader(), [0, *sorted(cuts), len(STREAM)]
    events = []
    for start, end in pairwise(places):
        events += reader.feed(STREAM[start:end])
    assert events == EVENTS


@pytest.mark.parametrize("data", [b"data: " + b"x" * 200, b"data: x\n" * 50, b"y" * 200])
def test_an_event_without_end_is_refused(data: bytes) -> None:
    reader = EventReader(max_event_bytes=100)
    pieces = (data[start : start + 10] for start in range(0, len(data), 10))
    with pytest.raises(AnswerError, match="more than 100 bytes"):
        list(chain.from_iterable(map(reader.feed, pieces)))


def test_many_events_are_no_long_one() -> None:
    reader = EventReader(max_event_bytes=100)
    assert len(list(reader.feed(b"data: x\n\n" * 100))) == 100
