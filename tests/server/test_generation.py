"""Engine outputs to text, without a server."""

import itertools

import pytest

from engine.interface.outputs import FinishReason, RequestOutput
from server.api.generation import ChoiceText
from server.api.preparation import TextOptions
from server.text import Tokenizer
from tests.fakes import EOS, byte_tokenizer_data

TOKENIZER = Tokenizer(byte_tokenizer_data())
TEXT = "one STOP two"


def push_all(
    choice: ChoiceText, steps: list[tuple[int, ...]], *, stop_token_id: int | None = None
) -> list[str]:
    """Push steps until the choice ends; the last one has the engine's finish reason."""
    texts = []
    for number, token_ids in enumerate(steps, 1):
        is_last = number == len(steps)
        reason = FinishReason.LENGTH if stop_token_id is None else FinishReason.STOP
        output = RequestOutput(
            index=0,
            new_token_ids=token_ids,
            num_cached_tokens=0,
            finish_reason=reason if is_last else None,
            stop_token_id=stop_token_id if is_last else None,
        )
        texts.append(choice.push(output).text)
        if choice.finish_reason is not None:
            break
    return texts


def split(data: bytes, *cuts: int) -> list[tuple[int, ...]]:
    bounds = [0, *cuts, len(data)]
    return [tuple(data[a:b]) for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("include_stop", [False, True])
def test_a_stop_string_is_found_whatever_the_steps(include_stop: bool) -> None:
    expected = "one STOP" if include_stop else "one "
    for cuts in itertools.combinations(range(1, len(TEXT)), 2):
        choice = ChoiceText(TOKENIZER, TextOptions(stop=("STOP", "two"), include_stop=include_stop))
        assert "".join(push_all(choice, split(TEXT.encode(), *cuts))) == expected
        assert choice.finish_reason is FinishReason.STOP
        assert choice.num_tokens == len("one STOP")


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("STOP" * 20,)))
    texts = push_all(choice, [(byte,) for byte in b"abcSTxy"])
    assert texts == ["a", "b", "c", "", "", "STx", "y"]


def test_what_was_held_back_comes_at_the_end() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("STOP",)))
    assert push_all(choice, [(byte,) for byte in b"abST"]) == ["a", "b", "", "ST"]
    assert choice.finish_reason is FinishReason.LENGTH


def test_a_stop_string_and_the_limit_in_one_step() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("STOP",)))
    assert push_all(choice, [tuple(b"a STOP b")]) == ["a "]
    assert choice.finish_reason is FinishReason.STOP
    assert choice.num_tokens == 6


def test_a_delta_holds_the_tokens_up_to_the_stop_only() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("b",)))
    output = RequestOutput(index=3, new_token_ids=tuple(b"abc"), num_cached_tokens=0)
    delta = choice.push(output)
    assert (delta.index, delta.text, bytes(delta.token_ids)) == (3, "a", b"ab")


def test_the_end_token_is_counted_and_shown_only_on_demand() -> None:
    steps = [tuple(b"ab"), (*b"c", EOS)]
    hidden = ChoiceText(TOKENIZER, TextOptions(skip_special_tokens=False))
    assert "".join(push_all(hidden, steps, stop_token_id=EOS)) == "abc"
    assert hidden.num_tokens == 4
    shown = ChoiceText(TOKENIZER, TextOptions(skip_special_tokens=False, include_stop=True))
    assert "".join(push_all(shown, steps, stop_token_id=EOS)) == "abc<|endoftext|>"


def test_a_stop_token_id_that_is_plain_text_is_hidden_too() -> None:
    choice = ChoiceText(TOKENIZER, TextOptions(stop=("zzz",)))
    assert (
        "".join(
            push_all(
                choice,
                [
                    tuple(b"ab."),
                ],
                stop_token_id=ord("."),
            )
        )
        == "ab"
    )
    assert choice.num_tokens == 3


def test_stop_strings_wait_for_min_tokens() -> None:
    for min_tokens, expected, num_tokens in (
        (0, "", 1),
        (1, "", 1),
        (2, "x", 2),
        (4, "xxx", 4),
        (9, "xxxx", 4),
    ):
        choice = ChoiceText(TOKENIZER, TextOptions(stop=("x",), min_tokens=min_tokens))
        assert "".join(push_all(choice, split(b"xxxx", 1, 2, 3))) == expected
        assert choice.num_tokens == num_tokens


def test_characters_come_whole_and_half_ones_are_flushed() -> None:
    data = "é😀".encode()
    choice = ChoiceText(TOKENIZER, TextOptions())
    assert push_all(choice, [(byte,) for byte in data]) == ["", "é", "", "", "", "😀"]
    cut_short = ChoiceText(TOKENIZER, TextOptions(stop=("nothing",)))
    assert "".join(push_all(cut_short, [tuple(data[:4])])) == data[:4].decode(errors="replace")
