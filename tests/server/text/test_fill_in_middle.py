"""Which vocabularies can fill in the middle, and the prompt that they were trained with."""

from dataclasses import replace

import pytest

from server.text import Tokenizer, find_fill_in_middle
from tests.fakes import byte_tokenizer_data

FAMILIES = [
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
]


def tokenizer_with(*texts, special=True):
    data = byte_tokenizer_data()
    ids = frozenset(range(len(data.tokens), len(data.tokens) + len(texts)))
    data = replace(data, tokens=data.tokens + texts)
    if special:
        return Tokenizer(replace(data, special_token_ids=data.special_token_ids | ids))
    return Tokenizer(replace(data, added_token_ids=ids))


@pytest.mark.parametrize("special", [True, False])  # Qwen's are added tokens, StarCoder's special ones
@pytest.mark.parametrize("texts", FAMILIES)
def test_the_tokens_stand_around_what_is_there(texts, special):
    found = find_fill_in_middle(tokenizer_with(*texts, special=special))
    assert found is not None
    assert found.prompt((1, 2), (3,)) == (259, 1, 2, 260, 3, 261)
    assert found.end_token_ids == frozenset()


def test_an_answer_ends_where_another_file_would_begin():
    found = find_fill_in_middle(tokenizer_with(*FAMILIES[0], "<|file_sep|>", "<|fim_pad|>"))
    assert found is not None
    assert found.end_token_ids == {262, 263}


@pytest.mark.parametrize("texts", [(), FAMILIES[0][:2], (FAMILIES[0][0], *FAMILIES[1][1:])])
def test_a_vocabulary_with_less_than_all_three_fills_in_nothing(texts):
    assert find_fill_in_middle(tokenizer_with(*texts)) is None
