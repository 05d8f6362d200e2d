"""Streamed text equals whole text, wherever tokens cut characters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint import TokenizerData
from engine.checkpoint.vocabulary import printable_bytes
from server.text import Detokenizer, Tokenizer

BYTES = tuple(sorted(printable_bytes(), key=printable_bytes().__getitem__))


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token per byte, and a special one."""
    return Tokenizer(TokenizerData(tokens=(*BYTES, "<|end|>"), merges=(), special_token_ids=frozenset({256})))


def stream(tokenizer, parts, skip):
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [detokenizer.push(part) for part in parts] + [detokenizer.flush()]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.lists(st.integers(0, 49160), max_size=5), max_size=20), st.booleans())
def test_random_ids_of_the_default_model(default_tokenizer, parts, skip):
    token_ids = [token_id for part in parts for token_id in part]
    whole = default_tokenizer.decode(token_ids, skip_special_tokens=skip)
    assert "".join(stream(default_tokenizer, parts, skip)) == whole


LEADS = st.sampled_from([0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xC0, 0xFF, 0x80, 0xA0, 0xBF, 0x41, 256])


@settings(deadline=None, max_examples=500)
@given(st.lists(st.lists(st.one_of(LEADS, st.integers(0, 256)), max_size=4), max_size=16), st.booleans())
def test_any_bytes_in_any_split(byte_tokenizer, parts, skip):
    token_ids = [token_id for part in parts for token_id in part]
    whole = byte_tokenizer.decode(token_ids, skip_special_tokens=skip)
    assert "".join(stream(byte_tokenizer, parts, skip)) == whole


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_characters_come_out_whole_byte_by_byte(byte_tokenizer, text):
    emitted = stream(byte_tokenizer, [[byte] for byte in text.encode()], skip=True)
    assert "".join(emitted) == text
    assert emitted[-1] == ""
    assert [len(delta) for delta in emitted if delta] == [1] * len(text)


def test_an_answer_that_ends_inside_a_character(byte_tokenizer):
    detokenizer = Detokenizer(byte_tokenizer)
    assert detokenizer.push("a€".encode()[:3]) == "a"
    assert detokenizer.push([]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_an_answer_that_begins_inside_a_character(byte_tokenizer):
    """The prompt had the first half: the answer shows what it lacks and none of the prompt."""
    assert stream(byte_tokenizer, ["€".encode()[1:], b"x"], skip=True) == ["\ufffd\ufffd", "x", ""]


def test_invalid_bytes_are_not_held_back(byte_tokenizer):
    assert stream(byte_tokenizer, [b"\xff", b"\x80", b"\xc3(", b"b"], skip=True) == [
        "\ufffd",
        "\ufffd",
        "\ufffd(",
        "b",
        "",
    ]


def test_special_tokens_are_skipped_or_shown(byte_tokenizer):
    half, rest = "é".encode()[:1], "é".encode()[1:]
    assert "".join(stream(byte_tokenizer, [half, [256], rest], skip=True)) == "é"
    shown = stream(byte_tokenizer, [half, [256], rest], skip=False)
    assert shown == ["", "\ufffd<|end|>", "\ufffd", ""]


def test_spaces_between_words_survive(default_tokenizer):
    text = "the cat  sat\n\n on  the mat "
    token_ids = default_tokenizer.encode(text)
    assert "".join(stream(default_tokenizer, [[i] for i in token_ids], skip=True)) == text
