"""What a model thinks, apart from what it answers, however the text is cut."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answers import FORMATS, AnswerParser, CallDelta, ReasoningDelta, ReasoningSplitter
from tests.server.answers.test_parsers import cut


def read(pieces, *, in_reasoning=False):
    splitter = ReasoningSplitter(in_reasoning=in_reasoning)
    pairs = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(thought for thought, _ in pairs), "".join(content for _, content in pairs)


ANSWERS = [
    ("plain", False, ("", "plain")),
    ("", False, ("", "")),
    ("  \n", False, ("", "  \n")),
    (" <b>bold</b>", False, ("", " <b>bold</b>")),
    ("<thin", False, ("", "<thin")),
    ("<think>\nhm, 1 < 2\n</think>\n\nYes.\n", False, ("hm, 1 < 2", "Yes.\n")),
    ("\n<think>a</think>b", False, ("a", "b")),
    ("<think></think>b", False, ("", "b")),
    ("<think>\n\n</think>\n\nb", False, ("", "b")),
    ("<think>never ends </thi", False, ("never ends </thi", "")),
    ("<think>a</think>", False, ("a", "")),
    ("a <think>b</think>", False, ("", "a <think>b</think>")),
    ("<think>a</think> <think>b</think>", False, ("a", "<think>b</think>")),
    ("hm</think>b", True, ("hm", "b")),
    ("\nhm\n", True, ("hm", "")),
]


@pytest.mark.parametrize(("answer", "in_reasoning", "expected"), ANSWERS)
def test_a_thought_is_split_off_however_the_answer_is_cut(answer, in_reasoning, expected):
    assert read([answer], in_reasoning=in_reasoning) == expected
    assert read(list(answer), in_reasoning=in_reasoning) == expected
    rng = random.Random(len(answer))
    for _ in range(30):
        assert read(cut(answer, rng), in_reasoning=in_reasoning) == expected


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think", ">", " ", "\n", "x"]), max_size=12)
)
def test_any_text_is_read_alike_in_one_piece_and_in_many(pieces):
    for in_reasoning in (False, True):
        assert read(pieces, in_reasoning=in_reasoning) == read(["".join(pieces)], in_reasoning=in_reasoning)


def test_calls_behind_a_thought():
    parser = AnswerParser(
        reasoning=ReasoningSplitter(in_reasoning=True),
        tool_calls=FORMATS["hermes"].new_parser(["now"]),
    )
    assert parser.in_reasoning
    text = 'I could <tool_call>{"name": "now"}</tool_call></think>\n<tool_call>{"name": "now"}</tool_call>'
    parts = [part for character in text for part in parser.push(character)] + parser.finish()
    thoughts = [part.text for part in parts if isinstance(part, ReasoningDelta)]
    assert "".join(thoughts) == 'I could <tool_call>{"name": "now"}</tool_call>', "a thought calls nothing"
    assert [part.name for part in parts if isinstance(part, CallDelta) and part.name] == ["now"]
    assert not parser.in_reasoning
