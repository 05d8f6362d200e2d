"""Byte-pair encoding with any list of merges, sensible or not, against the `tokenizers` library."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import models

from engine.checkpoint import TokenizerData
from engine.interface.errors import CheckpointError
from server.text import Tokenizer
from server.text.merge_table import MergeTable


@st.composite
def vocabularies(draw):
    """Tokens over three letters; merges in any order, some that nothing ever reaches."""
    tokens = ["a", "b", "c"]
    merges = []
    for _ in range(draw(st.integers(1, 14))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if (left, right) not in merges and len(left + right) < 10:
            merges.append((left, right))
            tokens += [left + right] if left + right not in tokens else []
    if draw(st.booleans()):
        merges = draw(st.permutations(merges))
    extra = draw(st.lists(st.text("abc", min_size=2, max_size=5), max_size=2))
    return tuple(dict.fromkeys(tokens + extra)), tuple(merges)


@settings(deadline=None, max_examples=600)
@given(
    vocabularies(),
    st.lists(st.text("abc", max_size=24), min_size=4, max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_ids_equal_for_any_merges(vocabulary, texts, whole_pieces, is_llama):
    tokens, merges = vocabulary
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    reference = ReferenceTokenizer(models.BPE(vocab=ids, merges=list(merges), ignore_merges=whole_pieces))
    tokenizer = Tokenizer(
        TokenizerData(
            tokens=tokens,
            merges=merges,
            special_token_ids=frozenset(),
            pre_tokenizer="llama-bpe" if is_llama else "gpt-2",
            ignore_merges=whole_pieces,
        )
    )
    table = MergeTable(ids, merges)
    for text in (*tokens, *texts):
        expected = reference.encode(text).ids
        assert tokenizer.encode(text) == expected
        if not whole_pieces:
            assert table.encode([ids[character] for character in text]) == expected


def test_formation_ranks_leave_out_what_no_text_contains():
    tokens = ("a", "b", "c", "bc", "ab", "abc")
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    spelling = {token_id: [ids[character] for character in token] for token, token_id in ids.items()}
    table = MergeTable(ids, [("b", "c"), ("a", "b"), ("ab", "c")])
    assert table.formation_ranks(spelling) == {ids["bc"]: 0, ids["ab"]: 1}  # "abc" becomes a, bc
    assert table.encode(spelling[ids["abc"]]) == [ids["a"], ids["bc"]]


def test_a_long_piece_costs_little_more_than_its_length():
    table = MergeTable({"a": 0, "aa": 1}, [("a", "a")])
    assert table.encode([0] * 100_001) == [1] * 50_000 + [0]


@pytest.mark.parametrize("merge", [("a", "x"), ("x", "a"), ("b", "a")])
def test_merges_of_unknown_tokens(merge):
    with pytest.raises(CheckpointError, match="merge 1 of the vocabulary"):
        MergeTable({"a": 0, "b": 1, "ab": 2}, [("a", "b"), merge])
