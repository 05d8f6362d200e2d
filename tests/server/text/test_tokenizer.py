"""Ids and texts of the tokenizer, against the `tokenizers` library."""

import logging
import random
import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint import TokenizerData
from engine.interface.errors import CheckpointError
from server.text import TextError, Tokenizer


def is_old(character):
    """True for what every version of Unicode has: the two libraries, and hypothesis, know different ones."""
    return unicodedata.ucd_3_2_0.category(character) != "Cn"


CHARACTERS = st.characters(exclude_categories=("Cs", "Cn")).filter(is_old)
DIGITS = st.text(st.characters(categories=("Nd",)).filter(is_old), min_size=1, max_size=5)
SNIPPETS = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_start|>user",
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_",
        "it's",
        "I'LL",
        "'\u017f 'S 'Re",
        "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
        "🇩🇪🇫🇷",
        "é̂ñ e\u0301\u0323",
        "가각힣 ᄀ\u1161\u11a8",
        "한국어 日本語ไทย العربية עברית",
        "1234567890 3.14 ٣٤ ½Ⅷ²",
        "   ",
        "\n\n  \n",
        "\t\t",
        "\r\n \r\n",
        "\u00a0\u2003\u3000\u200b\x85\x1c",
        "def f(x: int) -> str:\n    return f'{x:>10}'\n",
        "https://example.org/a?b=c&d=%20#e",
        "\x04\x06\x13\x1d",
        "\U000f0000\U0010ffff\ufeff\ufffe",
        "aaaaaaaaaaaa",
        "Łódź",
        " the and",
    ]
)
TEXTS = st.lists(
    st.one_of(
        st.text(CHARACTERS, max_size=12),
        st.text(" \n\t'ab1!\u3000é", max_size=12),
        SNIPPETS,
        DIGITS,
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=400)
@given(TEXTS)
def test_default_model_ids_equal(default_tokenizer, default_reference, text):
    assert default_tokenizer.encode(text) == default_reference.encode(text).ids


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_ids_equal_and_text_comes_back(trained_pair, text):
    tokenizer, reference, normalize = trained_pair
    token_ids = tokenizer.encode(text)
    assert token_ids == reference.encode(text).ids
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == normalize(text)


@pytest.fixture(scope="session")
def trained_pair(trained, build_reference):
    # Normalisation is of the text between special tokens; none of these composes across their borders.
    normalize = (lambda text: unicodedata.normalize("NFC", text)) if trained.normalization == "nfc" else str
    return Tokenizer(trained), build_reference(trained), normalize


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 49151), max_size=40), st.booleans())
def test_default_model_texts_equal(default_tokenizer, default_reference, token_ids, skip):
    expected = default_reference.decode(token_ids, skip_special_tokens=skip)
    assert default_tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_vocabulary_without_some_bytes(poor_pair, text):
    tokenizer, reference = poor_pair
    assert tokenizer.encode(text) == reference.encode(text).ids


@pytest.fixture(scope="session", params=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def poor_pair(request, train_vocabulary, build_reference):
    data = train_vocabulary(request.param, all_bytes=False)
    return Tokenizer(data), build_reference(data)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_ids_that_are_not_in_merge_order(shuffled_pair, text):
    tokenizer, reference = shuffled_pair
    assert tokenizer.encode(text) == reference.encode(text).ids


@pytest.fixture(scope="session")
def shuffled_pair(train_vocabulary, build_reference):
    data = train_vocabulary("gpt-2")
    order = list(range(len(data.tokens)))
    random.Random(7).shuffle(order)
    shuffled = replace(
        data,
        tokens=tuple(data.tokens[i] for i in order),
        special_token_ids=frozenset(order.index(i) for i in data.special_token_ids),
    )
    return Tokenizer(shuffled), build_reference(shuffled)


def test_every_assigned_character_of_unicode(default_tokenizer, default_reference):
    assigned = [
        chr(point)
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co")
    ]
    texts = [
        "".join(f"a{c}b {c}1{c}\n" for c in assigned[start : start + 1000])
        for start in range(0, len(assigned), 1000)
    ]
    assert [default_tokenizer.encode(text) for text in texts] == [
        encoding.ids for encoding in default_reference.encode_batch(texts)
    ]


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_100_000 + "x",  # more than tiktoken's own pattern engine survives
        "a" * 300_000,
        "!\x04" * 50_000,  # half of the bytes are not in the vocabulary
        "<|im_" * 50_000,
        " \n" * 100_000,
    ],
    ids=["spaces", "letters", "dropped", "almost special", "lines"],
)
def test_long_runs(default_tokenizer, default_reference, text):
    assert default_tokenizer.encode(text) == default_reference.encode(text).ids


def test_disallowed_special_tokens_are_plain_text(default_tokenizer, default_data, build_reference):
    text = "<|im_start|>user\nhi<|im_end|>"
    plain = build_reference(replace(default_data, special_token_ids=frozenset()))
    token_ids = default_tokenizer.encode(text, allow_special=False)
    assert token_ids == plain.encode(text).ids
    assert not any(default_tokenizer.is_special(token_id) for token_id in token_ids)
    assert default_tokenizer.decode(token_ids) == text
    assert default_tokenizer.encode(text)[0] == 1


def test_added_tokens_match_whole_and_are_kept(train_vocabulary, build_reference):
    trained = train_vocabulary("gpt-2")
    added = ("<tool>", "<tool>x", "  ", "ünd")
    data = replace(
        trained,
        tokens=trained.tokens + added,
        added_token_ids=frozenset(range(len(trained.tokens), len(trained.tokens) + len(added))),
    )
    tokenizer, reference = Tokenizer(data), build_reference(data)
    text = "a<tool>x<tool>b   ündund <|im_end|><to"
    token_ids = tokenizer.encode(text)
    assert token_ids == reference.encode(text).ids
    assert data.added_token_ids <= set(token_ids)
    assert tokenizer.decode(token_ids) == text.replace("<|im_end|>", "")
    assert data.added_token_ids <= set(tokenizer.encode(text, allow_special=False))


@pytest.mark.parametrize(("text", "offset"), [("ab\ud83d", 2), ("\udc00", 0), ("\U0001f600\ud800x", 1)])
def test_lone_surrogate_is_named_by_offset(default_tokenizer, text, offset):
    with pytest.raises(TextError, match=f"offset {offset};") as caught:
        default_tokenizer.encode(text)
    assert str(caught.value).encode()  # the error itself can be sent


def test_begin_token(train_vocabulary):
    data = train_vocabulary("gpt-2")
    plain = Tokenizer(data)
    assert plain.bos_token_id is None
    with pytest.raises(TextError, match="begin token"):
        plain.encode("a", add_bos=True)
    usual = Tokenizer(replace(data, bos_token_id=0, eos_token_id=2, add_bos=True))
    assert (usual.bos_token_id, usual.eos_token_id) == (0, 2)
    assert usual.encode("a") == [0, *plain.encode("a")]
    assert usual.encode("a", add_bos=False) == plain.encode("a")
    assert Tokenizer(replace(data, bos_token_id=0)).encode("", add_bos=True) == [0]


def test_dropped_bytes_are_warned_of_once(default_data, caplog):
    tokenizer = Tokenizer(default_data)
    with caplog.at_level(logging.WARNING):
        assert tokenizer.encode("a\x04b") == tokenizer.encode("a") + tokenizer.encode("b")
        tokenizer.encode("\x06")
    assert [record.getMessage() for record in caplog.records] == [
        "the vocabulary lacks 21 of the 256 bytes; text loses those it has (first seen in U+0004)"
    ]


def test_token_bytes_are_exact(default_tokenizer):
    euro = default_tokenizer.encode("€")
    assert b"".join(map(default_tokenizer.token_bytes, euro)) == "€".encode()
    assert default_tokenizer.token_bytes(1) == b"<|im_start|>"
    assert default_tokenizer.vocab_size == 49152


def test_padding_of_the_model_has_no_text(default_tokenizer):
    assert default_tokenizer.decode([49152, 2**40, -1]) == ""
    assert default_tokenizer.token_bytes(-1) == b""
    assert not default_tokenizer.is_special(49152)


def test_character_vocabulary():
    data = TokenizerData(kind="char", tokens=tuple("\n !aé😀"), merges=(), special_token_ids=frozenset())
    tokenizer = Tokenizer(data)
    text = "a é!\n😀"
    assert tokenizer.encode(text) == [3, 1, 4, 2, 0, 5]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(TextError, match=r"U\+007A at offset 2"):
        tokenizer.encode("aaz")
    with pytest.raises(TextError, match="surrogate"):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merges": (("a", "zzz"),)}, "merge 0 of the vocabulary"),
        ({"tokens": ("ab", "cd")}, "not byte-level"),
        ({"tokens": ("a", "\ud800")}, "surrogate"),
        ({"pre_tokenizer": "sentencepiece"}, "not known"),
        ({"pre_tokenizer": "regex:("}, "does not compile"),
        ({"bos_token_id": 2}, "outside a vocabulary of 2"),
        ({"add_bos": True}, "names none"),
    ],
)
def test_contradictory_vocabulary(changes, message):
    data = TokenizerData(tokens=("a", "b"), merges=(), special_token_ids=frozenset())
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(replace(data, **changes))
