"""Structural tags: what an answer may be, token by token, with the vocabulary of bytes."""

from dataclasses import replace

import pytest

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.structural_tag import StructuralTag, Structure, Thought, read_structural_tag
from engine.sampling.grammar_compiler import GrammarCompiler

END = 256
MARK = 257  # a control token, written as § here
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = (
    Structure(begin="<c>A", schema=CITY, end="</c>"),
    Structure(begin="<c>B", schema={"type": "object"}, end="</c>"),
)
A, B = '<c>A{"city": "x"}</c>', '<c>B{"n": [1]}</c>'


@pytest.fixture(scope="module")
def compiler():
    made = GrammarCompiler(
        [*(bytes([i]) for i in range(256)), b"<end>", b"<calls>"],
        end_token_ids=frozenset({END}),
        special_token_ids=frozenset({END, MARK}),
    )
    yield made
    made.close()


def accepts(compiler, tag, text):
    """Tell whether the text is a whole answer."""
    state = compiler.compile(tag.spec()).start()
    for character in text:
        for token_id in [MARK] if character == "§" else character.encode():
            if not state.allows(token_id):
                return False
            state.accept(token_id)
    return state.allows(END)


ONLY = StructuralTag(structures=CALLS, separator="; ", max_structures=2)
LISTED = StructuralTag(structures=CALLS, opening="[", closing="]", separator=", ", max_structures=2)
TRIGGERED = StructuralTag(structures=CALLS, trigger="<c>", max_structures=2)
FIRST = StructuralTag(
    structures=(Structure(begin='{"A": ', schema=CITY, end="}"),), first="{", separator=";", max_structures=2
)
ANSWER = StructuralTag(structures=CALLS, answer={"type": "object", "properties": {"ok": {"type": "boolean"}}})


MARKED = StructuralTag(
    structures=CALLS, opening="[", closing="]", separator=", ", max_structures=2, begin_token_id=MARK
)
MARKED_OR_JSON = replace(MARKED, answer={"type": "object", "properties": {"ok": {"type": "boolean"}}})


def thought(max_tokens, begin="<t>"):
    return Thought(
        begin_token_ids=tuple(begin.encode()), end="</t>", end_token_ids=tuple(b"</t>"), max_tokens=max_tokens
    )


THOUGHT = thought(5)

CASES = [
    (ONLY, A, True),
    (ONLY, f"{A}; {B}", True),
    (ONLY, f"{A}; {B}; {A}", False),
    (ONLY, f"{A};", False),
    (ONLY, "", False),
    (ONLY, '<c>A{"town": "x"}</c>', False),
    (ONLY, '<c>A{"city": "x", "more": 1}</c>', False),
    (LISTED, f"[{B}]", True),
    (LISTED, f"[{B}, {A}]", True),
    (LISTED, B, False),
    (TRIGGERED, "", True),
    (TRIGGERED, "a < b, <c and more", True),
    (TRIGGERED, f"text {A} text", True),
    (TRIGGERED, f"{A}{B}", True),
    (TRIGGERED, "text <c>C", False),
    (TRIGGERED, '<c>A{"town": 1}</c>', False),
    (FIRST, "plain {text}", True),
    (FIRST, "  ", True),
    (FIRST, "", True),
    (FIRST, '{"A": {"city": "x"}}', True),
    (FIRST, '{"A": {"city": "x"}};{"A": {"city": "y"}}', True),
    (FIRST, '{"B": 1}', False),
    (ANSWER, '{"ok": true}', True),
    (ANSWER, A, True),
    (ANSWER, '{"ok": 1}', False),
    (ANSWER, "text", False),
    (MARKED, "", True),
    (MARKED, "any [text] <calls> {", True),
    (MARKED, f"§[{A}]", True),
    (MARKED, f"text§[{B}, {A}]", True),
    (MARKED, f"text§{A}", False),
    (MARKED, f"§[{A}, {A}, {A}]", False),
    (MARKED, f"§[{A}] text", False),
    (MARKED, '§[<c>A{"town": 1}</c>]', False),
    (MARKED, "text§", False),
    (MARKED_OR_JSON, '{"ok": true}', True),
    (MARKED_OR_JSON, f"§[{A}]", True),
    (MARKED_OR_JSON, f"text§[{A}]", False),
    (MARKED_OR_JSON, '{"ok": true}§', False),
    (TRIGGERED, "text§", False),
    (replace(MARKED, thought=THOUGHT), f"<t>hm</t>text§[{A}]", True),
    (StructuralTag(answer={"type": "object"}), '{"a": 1}', True),
    (StructuralTag(answer={"type": "object"}), "text", False),
    (StructuralTag(thought=THOUGHT), "<t>hm</t>Anything <t>", True),
    (StructuralTag(thought=THOUGHT), "<t></t>", True),
    (StructuralTag(thought=THOUGHT), "<t>12345</t>", True),
    (StructuralTag(thought=THOUGHT), "<t>123456</t>", False),
    (StructuralTag(thought=THOUGHT), "no thought", False),
    (StructuralTag(thought=thought(0)), "<t></t>x", True),
    (
        StructuralTag(thought=thought(9, ""), answer={"type": "object"}),
        "hm</t>{}",
        True,
    ),
    (
        StructuralTag(thought=thought(9, ""), answer={"type": "object"}),
        "hm</t>x",
        False,
    ),
    (StructuralTag(structures=CALLS, thought=THOUGHT), f"<t>hm</t>{A}", True),
]


@pytest.mark.parametrize(("tag", "text", "is_whole"), CASES)
def test_what_is_a_whole_answer(compiler, tag, text, is_whole):
    assert accepts(compiler, tag, text) is is_whole


def test_a_reference_is_of_its_own_schema(compiler):
    """Each schema has $defs of its own, under the same names."""

    def referring(kind):
        schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"]}
        return {**schema, "$defs": {"x": {"type": kind}}}

    tag = StructuralTag(
        structures=(
            Structure(begin="S", schema=referring("string"), end=""),
            Structure(begin="I", schema=referring("integer"), end=""),
        )
    )
    assert accepts(compiler, tag, 'S{"x": "a"}')
    assert accepts(compiler, tag, 'I{"x": 1}')
    assert not accepts(compiler, tag, 'S{"x": 1}')


def test_a_tag_is_read_as_it_was_written():
    for tag in (
        ONLY,
        LISTED,
        TRIGGERED,
        MARKED,
        FIRST,
        ANSWER,
        StructuralTag(structures=CALLS, thought=THOUGHT),
    ):
        assert read_structural_tag(tag.spec().source) == tag


def test_numbers_are_bounded_where_all_is_json(compiler):
    assert accepts(compiler, ONLY, '<c>B{"n": 1234567890123456789}</c>')
    assert not accepts(compiler, ONLY, '<c>B{"n": 12345678901234567890}</c>')
    assert accepts(compiler, TRIGGERED, "12345678901234567890")


@pytest.mark.parametrize(
    "schema", [{"x-guidance": {}}, {"type": "object", "properties": {"a": {"const": 2**70 + 1}}}]
)
def test_a_schema_that_cannot_be_honoured_is_refused(compiler, schema):
    tag = StructuralTag(structures=(Structure(begin="A", schema=schema, end=""),))
    with pytest.raises(RequestError, match="the tools cannot be used"):
        compiler.compile(tag.spec())


@pytest.mark.parametrize("source", ["[]", "{}", '{"structures": 1, "thought": null}', "x"])
def test_a_source_of_another_shape_is_refused(compiler, source):
    with pytest.raises(RequestError):
        compiler.compile(GrammarSpec(kind=GrammarKind.STRUCTURAL_TAG, source=source))


def test_a_thought_that_is_too_long_is_ended(compiler):
    state = compiler.compile(StructuralTag(thought=thought(3), answer={"type": "object"}).spec()).start()
    assert state.forced_tokens(9) == list(b"<t>")
    for byte in b"<t>hm":
        state.accept(byte)
    assert all(state.allows(token_id) for token_id in range(END)), "thinking is free"
    assert not state.allows(END)
    copy = state.copy()
    state.accept(ord("m"))
    assert state.forced_tokens(9) == list(b"</t>")
    assert not state.allows(ord("m"))
    assert state.token_bitmask()[ord("<") >> 3] == 1 << (ord("<") & 7)
    assert copy.forced_tokens(9) == []
    for byte in b"</t>{}":
        assert state.allows(byte)
        state.accept(byte)
    assert state.is_complete
    assert not copy.is_complete


def test_a_mark_may_end_inside_a_token():
    made = GrammarCompiler(
        [b"hm", b"</", b"t>\n\n", b"{}", b""], end_token_ids=frozenset({4}), special_token_ids=frozenset()
    )
    mark = Thought(begin_token_ids=(), end="</t>", end_token_ids=(1, 2), max_tokens=10)
    state = made.compile(StructuralTag(thought=mark, answer={"type": "object"}).spec()).start()
    for token_id in (0, 1, 2):
        assert state.allows(token_id)
        state.accept(token_id)
    assert not state.allows(0)
    assert state.allows(3)
    made.close()


def test_a_thought_of_no_tokens_still_has_its_end_mark(compiler):
    tag = StructuralTag(thought=thought(0), answer={"type": "object"})
    assert accepts(compiler, tag, "<t></t>{}")
    assert not accepts(compiler, tag, "<t>{}")


def test_an_answer_does_not_end_in_its_thought_where_a_grammar_follows(compiler):
    constrained = compiler.compile(StructuralTag(thought=thought(9, ""), answer={"type": "object"}).spec())
    free = compiler.compile(StructuralTag(thought=thought(9, "")).spec())
    for state in (constrained.start(), free.start()):
        state.accept(ord("h"))
        mask = state.token_bitmask()
        assert state.allows(ord("m"))
        assert mask is None or mask[ord("m") >> 3] >> (ord("m") & 7) & 1
        assert state.allows(END) is (mask is None or bool(mask[END >> 3] >> (END & 7) & 1))
    assert not constrained.start().allows(END)
    assert free.start().allows(END)


@pytest.mark.parametrize("token_id", [END, -1, 258])
def test_a_mark_is_a_token_that_ends_nothing(compiler, token_id):
    with pytest.raises(RequestError, match=f"{token_id} is no token that may begin a call"):
        compiler.compile(replace(MARKED, begin_token_id=token_id).spec())


def test_the_mark_is_forced_where_nothing_else_may_come(compiler):
    state = compiler.compile(replace(MARKED, answer={"type": "null"}).spec()).start()
    assert state.allows(MARK)
    state.accept(MARK)
    assert bytes(state.forced_tokens(9)) == b"[<c>"
