"""What llguidance is asked: specs as its grammars, the vocabulary as it sees it, its limits.

Both the engine and the trial process build matchers here, so that what passed the trial is what runs.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from engine.interface.structural_tag import read_structural_tag
from engine.sampling.json_schema import prepare
from engine.sampling.structural_tag import structural_tag_rules

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SOURCE_BYTES = 1 << 16
MAX_TAG_BYTES = 1 << 18  # of a structural tag, which holds many schemas
MAX_SCHEMA_DEPTH = 100  # the library gives up at 128 levels, its own around the schema included

_EXACT = '%llguidance {"no_forcing": true}\nstart: @answer'
"""A mask holds every token that may come next; by default the library narrows it to its own spelling."""

_WHITESPACE = r" |\n[ \t]{0,32}"
"""Between JSON tokens: a space, or a line break and its indent. Unbounded runs keep weak models in them."""

DEAD_END = "NoExtensionBias"
"""How the library's error begins where no token of the vocabulary may come next."""

_MAX_MESSAGE_CHARS = 300
_AMBIGUITY_ROW_ITEMS = 500
# Both patterns are linear: a literal left open still matches, an attribute list ends at the next bracket.
_LARK_LITERALS = re.compile(r'"(?:\\.|[^"\\\n])*"?|//[^\n]*|/(?:\\.|[^/\\\n])+/?|#[^\n]*')
_LARK_REFUSED = (
    (re.compile(r"<"), "tokens cannot be named (<...>): a grammar describes text"),
    (re.compile(r"%llguidance"), "%llguidance options are the server's"),
    (
        re.compile(r"\[[^\[\]]*\b(?:stop|stop_capture)\s*="),
        "stop= is not supported: use suffix=",
    ),
    (re.compile(r"\[[^\[\]]*\btemperature\s*="), "temperature= belongs to the request"),
    (re.compile(r"::="), "rules are written `name: ...` (Lark), not `name ::= ...` (GBNF, EBNF)"),
)


def library_grammar(spec: GrammarSpec) -> str:
    """Return the spec as llguidance's JSON; raises RequestError for what can be seen without compiling."""
    num_bytes = len(spec.source.encode(errors="surrogatepass"))
    limit = MAX_TAG_BYTES if spec.kind is GrammarKind.STRUCTURAL_TAG else MAX_SOURCE_BYTES
    if num_bytes > limit:
        raise RequestError(f"{_noun(spec)} has {num_bytes} bytes, more than the {limit} allowed")
    try:
        grammar = _TRANSLATIONS[spec.kind](spec.source)
        text = json.dumps(
            {"grammars": [{"name": "top", "lark_grammar": _EXACT}, {"name": "answer", **grammar}]},
            ensure_ascii=False,
            allow_nan=False,
        )
        text.encode()
    except RecursionError:
        raise RequestError(f"{_noun(spec)} is nested too deeply") from None
    except ValueError as error:  # JSON errors, lone surrogates, NaN and our own
        raise RequestError(refusal(spec, str(error))) from None
    return text


def bounds_numbers(spec: GrammarSpec) -> bool:
    """Tell whether numbers of the answer are bounded: where all of it is JSON."""
    if spec.kind is GrammarKind.STRUCTURAL_TAG:
        return read_structural_tag(spec.source).is_json_only
    return spec.kind in (GrammarKind.JSON_OBJECT, GrammarKind.JSON_SCHEMA)


def named_token(spec: GrammarSpec) -> int | None:
    """Return the control token that a structural tag names, if it does."""
    is_tag = spec.kind is GrammarKind.STRUCTURAL_TAG
    return read_structural_tag(spec.source).begin_token_id if is_tag else None


def refusal(spec: GrammarSpec, reason: str) -> str:
    """Return one line that says why a spec is refused."""
    return f"{_noun(spec)} cannot be used: {describe(reason)}"


def describe(reason: str) -> str:
    """Return a message of the library as one line, without its traces and of bounded length."""
    reason = reason.split("\n<", 1)[0]
    if reason.startswith(DEAD_END):
        return "no token of this model can come next in a matching text"
    if reason.startswith("panic"):
        return "it is too complex"
    if "oneOf constraints" in reason:
        return "oneOf is supported only where no value can match two of its branches; use anyOf"
    reason = " ".join(reason.split())
    if len(reason) > _MAX_MESSAGE_CHARS:
        half = _MAX_MESSAGE_CHARS // 2
        reason = f"{reason[:half]} ... {reason[-half:]}"
    return reason


def build_tokenizer(token_bytes: Sequence[bytes]) -> "LLTokenizer":
    """Return the library's vocabulary; empty tokens never match. The id after the last is its end token."""
    from llguidance import LLTokenizer

    vocabulary: Any = _Vocabulary([*token_bytes, b""])  # by duck type: the library's class wants a callable
    return LLTokenizer(vocabulary, n_vocab=len(token_bytes) + 1, eos_token=len(token_bytes))


def new_matcher(tokenizer: "LLTokenizer", grammar: str, kind: GrammarKind) -> "LLMatcher":
    """Compile; `is_error()` of the result tells whether it worked. Releases the GIL while it works.

    The limits bound a step to some 20 ms on the worst grammars found, and the lexer's table, which all copies
    of a matcher share, to about 20 MB. A row of n items costs n**2 where the grammar is ambiguous, which
    JSON and regular expressions are not.
    """
    from llguidance import LLMatcher, LLParserLimits

    is_ambiguous = kind is GrammarKind.LARK
    limits = LLParserLimits(
        max_items_in_row=_AMBIGUITY_ROW_ITEMS if is_ambiguous else 2000,
        step_max_items=5000 if is_ambiguous else 20_000,
        initial_lexer_fuel=300_000,
        step_lexer_fuel=100_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


class _Vocabulary:
    """The attributes that LLTokenizer reads from a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: Collection[int] = ()

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1

    def __call__(self, text: bytes) -> list[int]:
        """Spell a text; only forcing would need it."""
        raise NotImplementedError


def _json_object(source: str) -> dict[str, object]:
    if source:
        raise ValueError("a JSON object without a schema has no source")
    return _with_whitespace({"type": "object"})


def _json_schema(source: str) -> dict[str, object]:
    schema = _parse_json(source)
    if not isinstance(schema, dict | bool):
        raise ValueError(f"it must be an object or a boolean, got {type(schema).__name__}")
    if schema is False:
        raise ValueError("it allows no value")
    if schema is True:
        schema = {}
    if "x-guidance" in schema:
        raise ValueError("x-guidance is not a keyword of JSON Schema")
    return _with_whitespace(prepare(schema))


def _with_whitespace(schema: dict[str, object]) -> dict[str, object]:
    return {"json_schema": _spaced(schema)}


def _spaced(schema: dict[str, object]) -> dict[str, object]:
    return {"x-guidance": {"whitespace_pattern": _WHITESPACE}, **schema}


def _structural_tag(source: str) -> dict[str, object]:
    _parse_json(source)  # for its depth and its numbers
    tag = read_structural_tag(source)
    schemas = [structure.schema for structure in tag.structures]
    if any("x-guidance" in schema for schema in [*schemas, tag.answer or {}]):
        raise ValueError("x-guidance is not a keyword of JSON Schema")
    return {"lark_grammar": structural_tag_rules(tag, _spaced)}


def _regex(source: str) -> dict[str, object]:
    from llguidance import regex_to_lark

    return {"lark_grammar": f"start: /{regex_to_lark(source, 'd')}/"}


def _choice(source: str) -> dict[str, object]:
    choices = _parse_json(source)
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("it must be a list of strings")
    if not choices:
        raise ValueError("it must have at least one string")
    # One terminal, not a rule of many: the lexer merges common prefixes, the parser would try each.
    literals = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))
    return {"lark_grammar": f"start: CHOICE\nCHOICE: {literals}"}


def _lark(source: str) -> dict[str, object]:
    bare = _LARK_LITERALS.sub('""', source)
    for pattern, message in _LARK_REFUSED:
        if pattern.search(bare):
            raise ValueError(message)
    return {"lark_grammar": source}


_TRANSLATIONS = {
    GrammarKind.JSON_OBJECT: _json_object,
    GrammarKind.JSON_SCHEMA: _json_schema,
    GrammarKind.REGEX: _regex,
    GrammarKind.CHOICE: _choice,
    GrammarKind.LARK: _lark,
    GrammarKind.STRUCTURAL_TAG: _structural_tag,
}

_NOUNS = {
    GrammarKind.JSON_OBJECT: "the JSON object",
    GrammarKind.JSON_SCHEMA: "the JSON schema",
    GrammarKind.REGEX: "the regular expression",
    GrammarKind.CHOICE: "the list of choices",
    GrammarKind.LARK: "the grammar",
    GrammarKind.STRUCTURAL_TAG: "the tools",
}


def _noun(spec: GrammarSpec) -> str:
    return _NOUNS[spec.kind]


def _parse_json(source: str) -> Any:
    value = json.loads(source, parse_constant=_refuse_constant)
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise RecursionError
        level = [child for parent in level for child in _children(parent)]
    return value


def _children(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
