"""GrammarSpec: what an answer must look like, as plain data."""

from dataclasses import dataclass
from enum import Enum


class GrammarKind(str, Enum):
    """The language that a grammar is written in."""

    JSON_OBJECT = "json_object"  # any JSON object; no source
    JSON_SCHEMA = "json_schema"  # the schema as JSON text
    REGEX = "regex"  # the whole answer matches
    CHOICE = "choice"  # JSON list of strings, one of which is the answer
    LARK = "lark"  # a context-free grammar
    STRUCTURAL_TAG = "structural_tag"  # JSON by schema between fixed texts; see StructuralTag


@dataclass(frozen=True, kw_only=True)
class GrammarSpec:
    """A grammar as the request brought it, not yet compiled."""

    kind: GrammarKind
    source: str = ""
