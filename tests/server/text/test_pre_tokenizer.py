"""Pieces, their normalisation, and patterns that would never end."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interface.errors import CheckpointError
from server.text import TextError
from server.text.pre_tokenizer import PreTokenizer


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["It", "'s", " 1234", ",", "  ", " ok", "\n"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", ",", "  ", " ok", "\n"]),
        ("llama-bpe", ["It", "'s", " ", "123", "4", ",", "  ", " ok", "\n"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", ",", "  ", " ok", "\n"]),
        (r"regex:\d\d", ["It's ", "12", "34", ",   ok\n"]),
    ],
)
def test_pieces(name, pieces):
    assert PreTokenizer(name).split("It's 1234,   ok\n") == pieces


def test_no_pieces_of_nothing():
    assert PreTokenizer("gpt-2").split("") == []
    assert PreTokenizer(r"regex:a*").split("baab") == ["b", "aa", "b"]


MARKS = st.text("\u0301\u0323\u0344\u0345\u05b0\u0f73\u0f71\u0334\u3099", min_size=30, max_size=90)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(MARKS, st.text(max_size=4)), max_size=4).map("".join))
def test_normal_form_is_the_standard_one(text):
    pieces = PreTokenizer("qwen2", normalization="nfc").split(text)
    assert "".join(pieces) == unicodedata.normalize("NFC", text)


def test_unordered_marks_take_no_quadratic_time():
    text = "a" + "\u0301\u0323" * 200_000  # minutes for unicodedata.normalize alone
    pieces = PreTokenizer("qwen2", normalization="nfc").split(text)
    assert sum(map(len, pieces)) == 400_000  # one mark composes with the letter


def test_a_pattern_that_never_ends_is_an_error():
    hostile = PreTokenizer(r"regex:(?:(a|aa)+)+$", timeout_seconds=0.05)
    with pytest.raises(TextError, match=r"within 0\.05 s"):
        hostile.split("a" * 60 + "!")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(" * 400 + ")" * 400, "does not compile"), ("a|" * 3000, "has 6000 characters, more than 4096")],
)
def test_patterns_that_take_long_to_compile_are_refused(pattern, message):
    with pytest.raises(CheckpointError, match=message):
        PreTokenizer(f"regex:{pattern}")


def test_only_our_own_patterns_are_known_to_be_linear():
    assert PreTokenizer("gpt-2").is_linear
    assert not PreTokenizer(r"regex:\w+").is_linear
