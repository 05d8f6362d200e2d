"""Stop strings: one cut for every split, nothing leaked, nothing held back without need."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text import StopStringMatcher, TextError

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)
PARTS = st.lists(st.text("abc", max_size=6), max_size=10)


def search(text, stops, include_stop):
    """Find the first stop string to be complete, the longest of those, by looking at every place."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include_stop else end - len(stop)], stop
    return text, None


def run(parts, stops, include_stop):
    """Push the parts until a stop; return the texts emitted and the stop string."""
    matcher = StopStringMatcher(stops, include_stop=include_stop)
    emitted = []
    for part in parts:
        match = matcher.push(part)
        emitted.append(match.text)
        if match.stopped:
            return emitted, match.stop
    return [*emitted, matcher.flush()], None


@settings(deadline=None, max_examples=800)
@given(PARTS, STOPS, st.booleans())
def test_any_split_gives_the_cut_of_a_naive_search(parts, stops, include_stop):
    emitted, stop = run(parts, stops, include_stop)
    assert ("".join(emitted), stop) == search("".join(parts), stops, include_stop)


@settings(deadline=None, max_examples=500)
@given(PARTS, STOPS)
def test_exactly_the_ambiguous_tail_is_held_back(parts, stops):
    matcher = StopStringMatcher(stops)
    seen = emitted = ""
    for part in parts:
        match = matcher.push(part)
        if match.stopped:
            return
        seen, emitted = seen + part, emitted + match.text
        tails = (seen[len(seen) - n :] for n in range(min(5, len(seen)), 0, -1))
        ambiguous = next((tail for tail in tails if any(stop.startswith(tail) for stop in stops)), "")
        assert seen == emitted + ambiguous


@settings(deadline=None, max_examples=300)
@given(PARTS, st.lists(st.text("ab\U0001f600é", min_size=1, max_size=8), min_size=1, max_size=5))
def test_no_part_of_a_stop_string_leaks(parts, stops):
    emitted, stop = run(parts, stops, include_stop=False)
    assert not any(string in "".join(emitted) for string in stops)
    assert stop is None or stop in "".join(parts)


def test_the_string_that_is_complete_first_wins():
    match = StopStringMatcher(["abcd", "bc"]).push("xabcd")
    assert (match.text, match.stopped, match.stop) == ("xa", True, "bc")
    match = StopStringMatcher(["bc", "abc"], include_stop=True).push("xabcd")
    assert (match.text, match.stop) == ("xabc", "abc")


def test_stop_inside_one_long_push():
    match = StopStringMatcher(["\n\n", "END"]).push("one END two\n\nthree END")
    assert (match.text, match.stop) == ("one ", "END")


def test_after_the_stop_nothing_follows():
    matcher = StopStringMatcher(["b"])
    assert matcher.push("ab").stopped
    later = matcher.push("cccb")
    assert (later.text, later.stopped, later.stop) == ("", True, "b")
    assert matcher.flush() == ""


def test_text_that_cannot_become_a_stop_string_comes_at_once():
    matcher = StopStringMatcher(["</answer>"])
    assert matcher.push("It is 3 < 4").text == "It is 3 < 4"
    assert matcher.push(" <").text == " "
    assert matcher.push("/answe").text == ""
    assert matcher.push("rs").text == "</answers"
    assert matcher.push("<").text == ""
    assert matcher.flush() == "<"
    assert matcher.flush() == ""


def test_no_stop_strings():
    matcher = StopStringMatcher([])
    match = matcher.push("abc")
    assert (match.text, match.stopped, match.stop) == ("abc", False, None)
    assert matcher.flush() == ""


def test_long_repetitive_stop_string_takes_linear_time():
    matcher = StopStringMatcher(["a" * 50_000 + "b"])
    emitted = sum(len(matcher.push("a").text) for _ in range(200_000))
    assert emitted == 150_000
    assert len(matcher.flush()) == 50_000


def test_empty_stop_string_is_refused():
    with pytest.raises(TextError, match="empty") as caught:
        StopStringMatcher(["a", ""])
    assert caught.value.param == "stop"
