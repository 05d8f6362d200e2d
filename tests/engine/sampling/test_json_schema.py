"""What is put right in a JSON schema before the grammar library reads it, and how long numbers may grow."""

import json
import random

import jsonschema
import numpy as np
import pytest
import torch

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.sampling.grammar_compiler import GrammarCompiler
from engine.sampling.json_schema import prepare
from engine.sampling.number_bound import DigitTokens, NumberPlace
from engine.sampling.token_bitmask import apply_token_bitmask

TOKENS = [b"<|end|>", *(bytes([byte]) for byte in range(32, 127)), b"\n", b"123", b"0000000", b"99,"]
IDS = {text: token_id for token_id, text in enumerate(TOKENS)}
INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
A, B = ({"properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab")


@pytest.fixture(scope="module")
def compiler():
    compiler = GrammarCompiler(TOKENS, end_token_ids=frozenset({0}), special_token_ids=frozenset())
    yield compiler
    compiler.close()


def spec(schema):
    return GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(schema))


def accepts(compiler, schema, text):
    state = compiler.compile(spec(schema)).start()
    for byte in text.encode():
        token_id = IDS[bytes([byte])]
        if not state.allows(token_id):
            return False
        state.accept(token_id)
    return state.allows(0)


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"const": 9007199254740993}, "const"),
        ({"const": {"a": [9007199254740993]}}, "const"),
        ({"enum": [1, 12345678901234567890123]}, "enum"),
        ({"const": 10**400}, "const"),
        ({"type": "integer", "minimum": 2**53 + 1}, "minimum"),
        ({"type": "integer", "maximum": -(2**53) - 1}, "maximum"),
        ({"type": "integer", "exclusiveMinimum": 2**53}, "exclusiveMinimum"),  # the next one is no double
        ({"type": "integer", "exclusiveMaximum": 2**53 + 2}, "exclusiveMaximum"),
        ({"type": "number", "maximum": 2**63 - 1}, "maximum"),
        ({"type": "integer", "multipleOf": 2**53 + 1}, "multipleOf"),
        ({"properties": {"x": {"items": {"const": 2**60 + 1}}}}, "const"),
        ({"$defs": {"x": {"const": 2**60 + 1}}, "$ref": "#/$defs/x"}, "const"),
    ],
    ids=str,
)
def test_a_number_that_no_double_holds_is_refused_by_its_keyword(compiler, schema, keyword):
    with pytest.raises(RequestError, match=rf"{keyword} .* cannot be honoured exactly"):
        compiler.compile(spec(schema))


@pytest.mark.parametrize("number", [2**53, 2**60, -(2**62), 10**17, 10**22])
def test_a_wide_number_that_a_double_holds_keeps_its_digits(compiler, number):
    for schema in ({"const": number}, {"enum": [number]}):
        assert accepts(compiler, schema, str(number))
        assert not accepts(compiler, schema, str(number + 1))


def test_bounds_of_64_bits_are_honoured(compiler):
    for schema in (INT64, {"type": ["integer", "null"], "exclusiveMinimum": -(2**70), "maximum": 2**64}):
        for text in ("0", "-1", "9223372036854774784", "-9223372036854774784"):
            assert accepts(compiler, schema, text)
        for text in ("9223372036854775808", "-9223372036854775809", "10000000000000000000"):
            assert not accepts(compiler, schema, text)


def test_names_of_members_are_no_keywords():
    schema = {
        "properties": {"minimum": {"type": "integer"}, "const": {"default": 2**60 + 1}},
        "default": 2**60 + 1,
    }
    assert prepare(schema) == schema | {"additionalProperties": False}


def test_counts_may_be_written_with_a_point(compiler):
    assert accepts(compiler, {"type": "string", "minLength": 2.0, "maxLength": 2.0}, '"ab"')
    assert accepts(compiler, {"type": "array", "minItems": 1.0, "items": {"type": "integer"}}, "[1]")
    with pytest.raises(RequestError, match="minLength"):
        compiler.compile(spec({"type": "string", "minLength": 2.5}))


CLOSED, OPEN = '{"a":1}', '{"a":1,"z":2}'


@pytest.mark.parametrize(
    ("schema", "is_open"),
    [
        (A, False),
        ({"type": "object", **A}, False),
        ({"anyOf": [A, {"type": "null"}]}, False),
        ({"$ref": "#/$defs/x", "$defs": {"x": A}}, False),
        ({**A, "additionalProperties": True}, True),
        ({**A, "additionalProperties": {"type": "integer"}}, True),
        ({**A, "patternProperties": {"^z": {"type": "integer"}}}, True),
        ({"type": "object"}, True),
        ({"allOf": [A]}, True),
    ],
    ids=str,
)
def test_an_object_that_lists_its_members_is_closed_unless_it_says_otherwise(compiler, schema, is_open):
    assert accepts(compiler, schema, CLOSED)
    assert accepts(compiler, schema, OPEN) is is_open


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        {"allOf": [{"$ref": "#/$defs/x"}, B], "$defs": {"x": A}},
        {**A, "allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": B}},
        {**A, "anyOf": [B, {"properties": {"c": True}}]},
        {**B, "$ref": "#/$defs/x", "$defs": {"x": {"anyOf": [A]}}},
        {"allOf": [{"anyOf": [A]}, B]},
        {**B, "$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/y"}, "y": A}},
    ],
    ids=str,
)
def test_schemas_that_share_an_object_can_still_be_satisfied(compiler, schema):
    texts = ['{"a":1,"b":2}', '{"b":2,"a":1}']  # the library decides on an order
    assert any(accepts(compiler, schema, text) for text in texts)


def grow(compiler, schema, seed, num_tokens=200):
    """Choose digits wherever they are allowed, else anything; the longest runs that a model could make."""
    state, text, rng = compiler.compile(spec(schema)).start(), b"", random.Random(seed)
    for _ in range(num_tokens):
        logits = torch.zeros(len(TOKENS))
        apply_token_bitmask(logits, state.token_bitmask())
        allowed = torch.isfinite(logits).nonzero().flatten().tolist()
        digits = [token_id for token_id in allowed if TOKENS[token_id][:1].isdigit()]
        token_id = rng.choice(digits or allowed)
        state.accept(token_id)
        if token_id == 0:
            return text.decode()
        text += TOKENS[token_id]
    return None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "integer"},
        {"type": "integer", "minimum": 0},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0.5},
        {"type": "number", "maximum": -3.25},
        {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 3, "maxItems": 3},
        {"properties": {"n": {"type": "number", "exclusiveMaximum": 7}}, "required": ["n"]},
        {"type": "integer", "multipleOf": 3},
        INT64,
    ],
    ids=str,
)
def test_numbers_end_by_themselves(compiler, schema):
    for seed in range(15):
        text = grow(compiler, schema, seed)
        assert text is not None
        jsonschema.validate(json.loads(text), schema)


def test_a_number_goes_on_where_the_schema_needs_more_digits(compiler):
    assert grow(compiler, {"const": 10**22}, 0) == str(10**22)


def test_digits_in_strings_are_not_counted(compiler):
    schema = {"type": "string", "maxLength": 60}
    assert accepts(compiler, schema, '"' + "7" * 60 + '"')
    assert accepts(compiler, schema, '"\\"' + "7" * 40 + '"')
    assert not accepts(compiler, {"type": "array"}, '["\\\\",' + "7" * 20 + "]")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", None),
        ("1", 18),
        ("-12", 17),
        ("12.", 17),
        ("0", 19),
        ("0.", 19),
        ("0.00012", 17),
        ("0." + "0" * 15, 19),
        ("0." + "0" * 16, 0),  # with the one before the point, 17 zeros and still nothing but them
        ("0." + "0" * 16 + "1", 18),
        ("100", 16),
        ("9" * 19, 0),
        ("9" * 25, 0),
        ("1e", 3),
        ("1e5", 2),
        ("1E+05", 1),
        ("1e-005", 0),
        ("1e5,2", 18),
        ("[1, 22", 17),
        ("1 ", None),
        ("true", None),
        ('"12', None),
        ('"12"', None),
        ('"12": 3', 18),
        ('"\\"12', None),
        ('"\\\\": 12', 17),
    ],
)
def test_how_many_digits_may_follow(text, left):
    place = NumberPlace()
    place.advance(text.encode())
    assert place.num_digits_left == left
    copy = place.copy()
    assert copy == place
    copy.advance(b'"1')
    assert place.num_digits_left == left


def test_tokens_by_the_digits_that_they_begin_with():
    def pack(bits):
        return np.packbits(np.array(bits, dtype=np.bool_), bitorder="little").astype(np.uint32)

    tokens = DigitTokens([b"", b"a", b"1", b"12", b"123,", b"1a2", b"a1"], pack)
    every = pack([True] * 7)
    for num_digits, kept in (
        (0, {0, 1, 6}),
        (1, {0, 1, 2, 5, 6}),
        (2, {0, 1, 2, 3, 5, 6}),
        (3, set(range(7))),
    ):
        words = tokens.without_more_than(num_digits, every)
        assert {i for i in range(7) if words[0] >> i & 1} == kept
