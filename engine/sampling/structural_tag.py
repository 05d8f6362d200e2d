"""Structural tags as rules of the grammar library."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.interface.structural_tag import StructuralTag
from engine.sampling.json_schema import prepare

_TEXT = "(?s:.*)"

Spaced = Callable[[Any], Mapping[str, Any]]
"""Adds to a schema what the library is told of white space."""


def structural_tag_rules(tag: StructuralTag, spaced: Spaced) -> str:
    """Return the tag, without its thought, as Lark rules; raises ValueError for what cannot be honoured."""
    rules = _answer_rules(tag, spaced)
    for number, structure in enumerate(tag.structures):
        begin = structure.begin.removeprefix(tag.trigger or "")
        rules.append(f"call{number}: {_literal(begin)} json{number} {_literal(structure.end)}")
        rules.append(f"json{number}: {_json(structure.schema, spaced)}")
    if tag.structures:
        rules.append("call: " + " | ".join(f"call{number}" for number in range(len(tag.structures))))
    return "\n".join(rules)


def _answer_rules(tag: StructuralTag, spaced: Spaced) -> list[str]:
    """Return the rules of what may be said beside structures, and of where they stand in it."""
    answer = [] if tag.answer is None else [f"answer: {_json(tag.answer, spaced)}"]
    if not tag.structures:
        return ["start: answer", *answer] if answer else [f"start: /{_TEXT}/"]
    most = tag.max_structures
    more = f"({_literal(tag.separator)} call){{0,{most - 1}}}" if most > 1 else ""
    begin = "" if tag.begin_token_id is None else f"<[{tag.begin_token_id}]>"
    calls = f"{begin} {_literal(tag.opening)} call {more} {_literal(tag.closing)}"
    if answer:
        return [f"start: answer | {calls}", *answer]
    if begin:
        return [f"start: OTHER ({calls})?", f"OTHER: /{_TEXT}/"]
    if tag.trigger:
        trigger = _escape(tag.trigger)
        return [
            f"start: OTHER | (until call){{1,{most}}} OTHER",
            f"OTHER: /{_TEXT}/ & ~/{_TEXT}{trigger}{_TEXT}/",
            f"until[lazy]: /{_TEXT}{trigger}/",
        ]
    if tag.first:
        return [f"start: OTHER | {calls}", f"OTHER: /(?s:\\s*([^\\s{_escape(tag.first)}].*)?)/"]
    return [f"start: {calls}"]


def _json(schema: Mapping[str, Any], spaced: Spaced) -> str:
    return f"%json {json.dumps(spaced(prepare(dict(schema))), ensure_ascii=False)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$/-" else char for char in text)
