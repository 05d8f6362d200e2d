"""Structural tags: JSON that follows schemas, between fixed texts, as a grammar of the library.

    {"structures": [{"begin": text, "schema": {...}, "end": text}, ...],
     "opening": text, "separator": text, "closing": text, "max": n,
     "trigger": text or null, "first": text or null, "answer": {...} or null}

The answer is `opening`, 1 to `max` structures with `separator` between them, and `closing`. With `trigger`,
which every structure begins with, it may say anything else, too, but what follows a trigger is a structure.
With `first` it is this or a text that does not begin with that character, with `answer` this or JSON that
follows that schema.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.sampling.json_schema import prepare

_TEXT = "(?s:.*)"


def structural_tag_rules(tag: Mapping[str, Any], with_whitespace: Callable[[Any], Mapping[str, Any]]) -> str:
    """Return the tag as Lark rules; raises ValueError and KeyError for a source of another shape."""
    trigger, first = tag["trigger"] or "", tag["first"]
    rules = []
    for number, structure in enumerate(tag["structures"]):
        schema = json.dumps(with_whitespace(prepare(structure["schema"])), ensure_ascii=False)
        begin, end = structure["begin"].removeprefix(trigger), structure["end"]
        rules += [
            f"call{number}: {_literal(begin)} json{number} {_literal(end)}",
            f"json{number}: %json {schema}",
        ]
    names = " | ".join(f"call{number}" for number in range(len(tag["structures"])))
    more = f"({_literal(tag['separator'])} call){{0,{tag['max'] - 1}}}" if tag["max"] > 1 else ""
    calls = f"{_literal(tag['opening'])} call {more} {_literal(tag['closing'])}"
    if tag["answer"] is not None:
        schema = json.dumps(with_whitespace(prepare(tag["answer"])), ensure_ascii=False)
        start = [f"start: answer | {calls}", f"answer: %json {schema}"]
    elif trigger:
        start = [f"start: OTHER | (until call){{1,{tag['max']}}} OTHER", *_free_text(trigger)]
    elif first:
        start = [f"start: OTHER | {calls}", f"OTHER: /(?s:\\s*([^\\s{_escape(first)}].*)?)/"]
    else:
        start = [f"start: {calls}"]
    return "\n".join([*start, f"call: {names}", *rules])


def _free_text(trigger: str) -> list[str]:
    """Return the rules of text without a trigger, and of text up to one."""
    pattern = _escape(trigger)
    return [
        f"OTHER: /{_TEXT}/ & ~/{_TEXT}{pattern}{_TEXT}/",
        f"until[lazy]: /{_TEXT}{pattern}/",
    ]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$/-" else char for char in text)
