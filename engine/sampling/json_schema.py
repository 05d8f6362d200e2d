"""JSON schemas as the grammar library reads them: what it would round, leave open or refuse is put right.

The library holds numbers as doubles, takes counts only as integers, and lets a model invent members of every
object that does not say otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

_LARGEST = 2**63 - 1024
"""The largest integer that both a double and 64 bits hold: the library knows no bounds beyond."""

_COUNTS = tuple(
    f"{which}{what}" for which in ("min", "max") for what in ("Length", "Items", "Properties", "Contains")
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ONE_SCHEMA = (
    *("items", "additionalProperties", "unevaluatedProperties", "propertyNames", "additionalItems"),
    *("not", "if", "then", "else", "contains"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_COMPOSING = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "not")
_ALONE = frozenset(
    {"anyOf", "oneOf", "$ref", "type", "title", "description", "default", "examples", "$comment", "$schema"}
    | {"$id", "$defs", "definitions", "nullable", "deprecated"}
)


def prepare(schema: Schema) -> Schema:
    """Return the schema with counts as integers, and objects closed that list their members and say no more.

    An object stays open where another schema adds members to it (allOf, $ref or anyOf beside `properties`):
    closed, no value could match both. Bounds of integers beyond 64 bits are narrowed to them. Raises
    ValueError for a number that a double cannot hold, naming its keyword.
    """
    shared, before = frozenset[str](), None
    while shared != before:  # a schema that others add to may refer to the next
        before, shared = shared, frozenset(_composed_references(schema, "", shared, is_composed=False))
    return _Preparation(shared).prepare(schema, "", is_composed=False)


class _Preparation:
    def __init__(self, shared: frozenset[str]) -> None:
        self._shared = shared  # references to schemas that others add to

    def prepare(self, schema: Schema, path: str, *, is_composed: bool) -> Schema:
        """Prepare a schema at `path`; `is_composed` says that another one describes the same value."""
        result = dict(schema)
        for name in _COUNTS:
            if isinstance(result.get(name), float) and result[name].is_integer():
                result[name] = int(result[name])
        _prepare_numbers(result, path)
        is_composed |= _reference(path) in self._shared
        for child_path, child, put, composes in _children(result, path, is_composed):
            put(self.prepare(child, child_path, is_composed=composes))
        if "properties" in result and not is_composed and not any(k in result for k in (*_OPEN, *_COMPOSING)):
            result["additionalProperties"] = False
        return result


def _prepare_numbers(schema: Schema, path: str) -> None:
    """Refuse numbers that are no doubles; narrow bounds of integers that no 64 bits hold."""
    for name in ("const", "enum"):
        if name in schema:
            for number in _numbers(schema[name]):
                _check_exact(number, 0, name, path)
    is_integer = _is_integer(schema)
    for name in _BOUNDS:
        bound = schema.get(name)
        if type(bound) is not int:
            continue
        if is_integer and name.lower().endswith("maximum") and bound > _LARGEST:
            del schema[name]
            schema["maximum"] = min(_LARGEST, schema.get("maximum", _LARGEST))
        elif is_integer and name.lower().endswith("minimum") and bound < -_LARGEST:
            del schema[name]
            schema["minimum"] = max(-_LARGEST, schema.get("minimum", -_LARGEST))
        else:  # the library makes exclusive bounds of integers inclusive ones
            step = (name == "exclusiveMinimum") - (name == "exclusiveMaximum") if is_integer else 0
            _check_exact(bound, step, name, path)


def _is_integer(schema: Schema) -> bool:
    types = schema.get("type")
    return ("integer" in types and "number" not in types) if isinstance(types, list) else types == "integer"


def _numbers(value: object) -> Iterator[int]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            yield item


def _check_exact(number: int, step: int, name: str, path: str) -> None:
    """Raise ValueError if a double cannot hold `number`, or the number one `step` beside it."""
    try:
        is_exact = all(int(float(value)) == value for value in (number, number + step))
    except OverflowError:
        is_exact = False
    if not is_exact:
        shown = str(number) if abs(number) < 10**40 else f"a number of {len(str(abs(number)))} digits"
        raise ValueError(
            f"{name} {shown} at {path or 'the top'} cannot be honoured exactly: numbers are held as doubles, "
            f"which have every integer only up to {2**53}"
        )


def _children(
    schema: Schema, path: str, is_composed: bool
) -> Iterator[tuple[str, Schema, Callable[[Schema], None], bool]]:
    """Yield the schemas inside one: their path, what puts them back, and whether they share their value."""
    for name in _ONE_SCHEMA:
        if isinstance(schema.get(name), dict):
            yield f"{path}/{name}", schema[name], _setter(schema, name), name in ("not", "if", "then", "else")
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            members = schema[name] = dict(schema[name])
            for key, child in list(members.items()):
                if isinstance(child, dict):
                    composes = name == "dependentSchemas"
                    yield f"{path}/{name}/{key}", child, _setter(members, key), composes
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            items = schema[name] = list(schema[name])
            for number, child in enumerate(items):
                if isinstance(child, dict):
                    composes = name in ("allOf", "anyOf", "oneOf") and (
                        is_composed or not _stands_alone(schema)
                    )
                    yield f"{path}/{name}/{number}", child, _setter(items, number), composes


def _setter(container: Any, key: object) -> Callable[[Schema], None]:
    def put(value: Schema) -> None:
        container[key] = value

    return put


def _stands_alone(schema: Mapping[str, object]) -> bool:
    """Tell whether a choice between schemas, or a reference, is all that a schema says of its value."""
    return _ALONE.issuperset(schema)


def _composed_references(
    schema: Schema, path: str, shared: frozenset[str], *, is_composed: bool
) -> Iterator[str]:
    """Yield the references to schemas that share their value with another."""
    is_composed |= _reference(path) in shared
    reference = schema.get("$ref")
    if isinstance(reference, str) and (is_composed or not _stands_alone(schema)):
        yield reference
    for child_path, child, _, composes in _children(dict(schema), path, is_composed):
        yield from _composed_references(child, child_path, shared, is_composed=composes)


def _reference(path: str) -> str:
    return f"#{path}"
