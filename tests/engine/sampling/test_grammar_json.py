"""Whatever is chosen under a JSON schema parses and validates; the validator is a small one of our own."""

import json
import random
import re

import pytest
import torch

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.sampling.grammar_compiler import GrammarCompiler
from engine.sampling.token_bitmask import apply_token_bitmask

END = 0
TOKENS = [b"<|end|>", *(bytes([byte]) for byte in b'{}[]",:-.\\ \nabetrunflsE0159/'), "é".encode(), b"\xf0"]
TOKENS += [b"\x9f", b"\x98", b"\x80", b'{"', b'":', b'": ', b'", "', b"true", b"null", b"}]", b'"}', b'"a"']
TOKENS += [
    b'"}]',
    b", ",
    b"],",
    b"12",
    b'"b":',
    b"\\u00",
    b"kind",
    b"name",
    b"left",
    b"right",
    b"\t",
    b"\r\n",
]
TOKENS += [bytes([byte]) for byte in b"kimgocdhv+@T:Z2346789xywpqjA"]
MAX_TOKENS = 400


@pytest.fixture(scope="module")
def compiler():
    compiler = GrammarCompiler(TOKENS, end_token_ids=frozenset({END}), special_token_ids=frozenset())
    yield compiler
    compiler.close()


def schema_spec(schema):
    return GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(schema))


def allowed(state):
    logits = torch.zeros(len(TOKENS))
    apply_token_bitmask(logits, state.token_bitmask())
    return torch.isfinite(logits).nonzero().flatten().tolist()


def walk(grammar, seed):
    """Choose uniformly among the allowed tokens; return the text, or None when it grows too long."""
    generator, state, text = random.Random(seed), grammar.start(), b""
    for _ in range(MAX_TOKENS):
        token_id = generator.choice(allowed(state))
        state.accept(token_id)
        assert state.error is None
        if token_id == END:
            return text.decode()
        text += TOKENS[token_id]
        if state.is_complete:
            assert allowed(state) == [END]
            return text.decode()
    return None


def validate(value, schema, root):
    """Assert that a value matches the keywords that the schemas here use."""
    if schema is True:
        return
    if "$ref" in schema:
        validate(value, resolve(schema["$ref"], root), root)
    if "anyOf" in schema:
        assert any(is_valid(value, branch, root) for branch in schema["anyOf"])
    assert value in schema.get("enum", [value])
    assert value == schema.get("const", value)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(has_type(value, name) for name in types)
    if isinstance(value, dict):
        validate_object(value, schema, root)
    elif isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        prefix = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            validate(item, prefix[number] if number < len(prefix) else schema.get("items", True), root)
    elif isinstance(value, str):
        assert schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        assert re.search(schema.get("pattern", ""), value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value)
        assert "multipleOf" not in schema or value % schema["multipleOf"] == 0


def validate_object(value, schema, root):
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    assert set(schema.get("required", [])) <= set(value)
    for key, item in value.items():
        assert key in properties or rest is not False
        validate(item, properties.get(key, rest), root)


def is_valid(value, schema, root):
    try:
        validate(value, schema, root)
    except AssertionError:
        return False
    return True


def has_type(value, name):
    if isinstance(value, bool):
        return name == "boolean"
    types = {"object": dict, "array": list, "string": str, "null": type(None), "number": int | float}
    return isinstance(value, types.get(name, int))


def resolve(pointer, root):
    for part in pointer.removeprefix("#").split("/")[1:]:
        root = root[part]
    return root


def closed(properties, *, optional=()):
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = {
    "scalars": closed({"name": {"type": "string"}, "n": {"type": "integer"}, "ok": {"type": "boolean"}}),
    "optional": closed({"a": {"type": "null"}, "b": {"type": "number"}}, optional=("a", "b")),
    "limits": closed(
        {
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "half": {"type": "number", "minimum": -1.5, "maximum": 2.5},
            "even": {"type": "integer", "multipleOf": 2},
            "code": {"type": "string", "minLength": 2, "maxLength": 4},
            "id": {"type": "string", "pattern": "^[ab]{2,3}-?[0-9]$"},
        }
    ),
    "array": {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "name"}], "items": False},
    "either": {
        "anyOf": [{"type": "string", "maxLength": 3}, closed({"left": {"type": ["integer", "null"]}})]
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": closed(
                {
                    "kind": {"enum": ["a", "b"]},
                    "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                }
            )
        },
    },
    "nested enum": {"enum": [{"a": [1, 2]}, {"a": [1]}, "é", 15]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "anything": True,
    "open object": {"type": "object", "properties": {"name": {"type": "null"}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_validate(compiler, name):
    schema = SCHEMAS[name]
    grammar = compiler.compile(schema_spec(schema))
    texts = [text for seed in range(40) if (text := walk(grammar, seed)) is not None]
    assert len(texts) >= 20
    for text in texts:
        validate(json.loads(text), schema, schema)


def test_a_json_object_without_schema(compiler):
    grammar = compiler.compile(GrammarSpec(kind=GrammarKind.JSON_OBJECT))
    texts = [text for seed in range(40) if (text := walk(grammar, seed)) is not None]
    assert len(texts) >= 20
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert len(set(texts)) > 5


def test_white_space_is_one_space_or_one_line_break_with_its_indent(compiler):
    """Unbounded white space is where weak models stay until max_tokens."""
    state = compiler.compile(GrammarSpec(kind=GrammarKind.JSON_OBJECT)).start()
    space, line_break, quote = (TOKENS.index(text) for text in (b" ", b"\n", b'"'))
    state.accept(TOKENS.index(b"{"))
    assert {space, line_break, quote} <= set(allowed(state))
    assert TOKENS.index(b"\r\n") not in allowed(state)
    spaced = state.copy()
    spaced.accept(space)
    assert not {space, line_break} & set(allowed(spaced))
    state.accept(line_break)
    num_spaces = 0
    while space in allowed(state):
        state.accept(space)
        num_spaces += 1
    assert num_spaces == 32
    assert quote in allowed(state)


def test_properties_come_in_the_order_of_the_schema(compiler):
    state = compiler.compile(schema_spec(closed({"b": {"type": "null"}, "a": {"type": "null"}}))).start()
    for token in (b'{"', b"b", b'":', b"null", b", ", b'"a"'):
        assert TOKENS.index(token) in allowed(state)
        state.accept(TOKENS.index(token))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "object or a boolean, got list"),
        ("3", "object or a boolean, got int"),
        ("false", "allows no value"),
        ('{"type": "strin"}', "Invalid type"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('{"not": {"type": "string"}}', '"not"'),
        ('{"if": {"type": "string"}, "then": {"maxLength": 3}}', '"if"'),
        ('{"type": "string", "format": "colour"}', "colour"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"$ref": "file:///etc/passwd"}', "does not fetch"),
        ('{"$ref": "#"}', "no token of this model"),
        ('{"oneOf": [{"maxLength": 5, "type": "string"}, {"type": "string"}]}', "use anyOf"),
        ('{"type": "integer", "minimum": 5, "maximum": 1}', "minimum"),
        ('{"type": "integer", "minimum": NaN}', "NaN"),
        ('{"type": "integer", "minimum": 1e999}', "float"),
        ('{"const": "\\ud800"}', "surrogates"),
        ('{"x-guidance": {"lenient": true}, "not": {}}', "x-guidance"),
        ('{"const": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_what_cannot_be_kept_is_refused(compiler, source, reason):
    with pytest.raises(RequestError, match=re.escape(reason)) as caught:
        compiler.compile(GrammarSpec(kind=GrammarKind.JSON_SCHEMA, source=source))
    assert str(caught.value).startswith("the JSON schema cannot be used: ")
    assert caught.value.param == "response_format"
