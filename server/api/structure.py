"""Parsers of what an answer must look like: response_format and structured_outputs."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from server.api.body import RoundedFloat, load_json
from server.api.errors import describe, shorten
from server.api.limits import MAX_GRAMMAR_CHARS, MAX_GRAMMAR_CHOICES

_FORMAT_KEYS = frozenset({"type", "json_schema", "schema"})
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What one of the two fields asks for."""

    grammar: GrammarSpec | None  # None: free text
    unknown_keys: tuple[str, ...] = ()


def parse_response_format(value: object) -> Structure:
    """Read OpenAI's `{"type": "text" | "json_object" | "json_schema", "json_schema": {...}}`."""
    fields = _object(value, "response_format")
    unknown = _unknown(fields, _FORMAT_KEYS, "response_format")
    kind = fields.get("type")
    if kind == "text":
        return Structure(grammar=None, unknown_keys=unknown)
    if kind == "json_object" and fields.get("schema") is None:
        return Structure(grammar=GrammarSpec(kind=GrammarKind.JSON_OBJECT), unknown_keys=unknown)
    if kind == "json_object":  # llama.cpp's and Together's way to give a schema
        where = "response_format.schema"
        source = _schema_source(_object(fields["schema"], where), where)
        return Structure(grammar=_spec(GrammarKind.JSON_SCHEMA, source, where), unknown_keys=unknown)
    if kind != "json_schema":
        raise _wrong("response_format.type", "text, json_object or json_schema", kind)
    where = "response_format.json_schema"
    members = _object(fields.get("json_schema"), where)
    for name, types in (("name", str), ("description", str), ("strict", bool)):
        if members.get(name) is not None and not isinstance(members[name], types):
            raise _wrong(f"{where}.{name}", "a string" if types is str else "true or false", members[name])
    source = _schema_source(_object(members.get("schema"), f"{where}.schema"), f"{where}.schema")
    return Structure(
        grammar=_spec(GrammarKind.JSON_SCHEMA, source, where),
        unknown_keys=unknown + _unknown(members, _SCHEMA_KEYS, where),
    )


DIALECTS: Mapping[str, str] = {
    "guided_json": "json",  # vLLM's older names
    "guided_regex": "regex",
    "guided_choice": "choice",
    "json_schema": "json",  # llama.cpp's and SGLang's
    "regex": "regex",
}
"""Fields of other servers, and the member of structured_outputs that each means."""


def with_structured_outputs(fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return the fields of a body with other servers' ways to constrain an answer as structured_outputs."""
    given = [name for name in DIALECTS if fields.get(name) is not None]
    if not given:
        return fields
    if len(given) > 1 or fields.get("structured_outputs") is not None:
        names = [*given, *(["structured_outputs"] if len(given) == 1 else [])]
        raise RequestError(f"{' and '.join(names)} exclude each other", param=given[0])
    (name,) = given
    rest = {key: value for key, value in fields.items() if key != name}
    return {**rest, "structured_outputs": {DIALECTS[name]: fields[name]}}


def parse_structured_outputs(value: object) -> Structure:
    """Read `{"json" | "json_object" | "regex" | "choice" | "grammar": ...}`, exactly one of them."""
    where = "structured_outputs"
    fields = _object(value, where)
    given = [name for name in _PARSERS if fields.get(name) is not None and fields[name] is not False]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise RequestError(
            f"{where} must have exactly one of {', '.join(_PARSERS)}; got {found}", param=where
        )
    (name,) = given
    grammar = _PARSERS[name](fields[name], f"{where}.{name}")
    return Structure(grammar=grammar, unknown_keys=_unknown(fields, _PARSERS.keys(), where))


def _json_schema(value: object, where: str) -> GrammarSpec:
    if isinstance(value, str):
        _check_length(value, where)
        try:
            value = load_json(value)
        except ValueError as error:
            raise RequestError(f"{where} is not valid JSON: {error}", param=where) from None
    return _spec(GrammarKind.JSON_SCHEMA, _schema_source(_object(value, where), where), where)


def _json_object(value: object, where: str) -> GrammarSpec:
    if value is not True:
        raise _wrong(where, "true or false", value)
    return GrammarSpec(kind=GrammarKind.JSON_OBJECT)


def _regex(value: object, where: str) -> GrammarSpec:
    return _spec(GrammarKind.REGEX, _text(value, where), where)


def _lark(value: object, where: str) -> GrammarSpec:
    return _spec(GrammarKind.LARK, _text(value, where), where)


def _choice(value: object, where: str) -> GrammarSpec:
    if not isinstance(value, list):
        raise _wrong(where, "a list of strings", value)
    if not 1 <= len(value) <= MAX_GRAMMAR_CHOICES:
        raise RequestError(
            f"{where} must have 1 to {MAX_GRAMMAR_CHOICES} strings, got {len(value)}", param=where
        )
    choices = [_text(choice, where) for choice in value]
    return _spec(GrammarKind.CHOICE, json.dumps(choices, ensure_ascii=False), where)


_PARSERS: Mapping[str, Callable[[object, str], GrammarSpec]] = {
    "json": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}


def _spec(kind: GrammarKind, source: str, where: str) -> GrammarSpec:
    _check_length(source, where)
    return GrammarSpec(kind=kind, source=source)


def _schema_source(schema: Mapping[str, object], where: str) -> str:
    rounded = _find_rounded(schema)
    if rounded is not None:
        raise RequestError(
            f"{where} holds {shorten(rounded.text)}, which has more digits than a double", param=where
        )
    try:
        source = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        source.encode()
    except RecursionError:
        raise RequestError(f"{where} is nested too deeply", param=where) from None
    except UnicodeEncodeError:
        raise RequestError(f"{where} holds a lone surrogate, which is not text", param=where) from None
    except ValueError:
        raise RequestError(f"{where} holds a number that is too large", param=where) from None
    return source


def _find_rounded(value: object) -> RoundedFloat | None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, RoundedFloat):
            return item
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return None


def _check_length(source: str, where: str) -> None:
    if len(source) > MAX_GRAMMAR_CHARS:
        raise RequestError(
            f"{where} has {len(source)} characters, the limit is {MAX_GRAMMAR_CHARS}", param=where
        )


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "text that is not empty", value)
    return value


def _unknown(fields: Mapping[str, object], known: Collection[str], where: str) -> tuple[str, ...]:
    return tuple(f"{where}.{key}" for key, value in fields.items() if key not in known and value is not None)


def _wrong(where: str, expected: str, value: object) -> RequestError:
    return RequestError(f"{where} must be {expected}, got {describe(value)}", param=shorten(where))
