"""StructuralTag: an answer made of fixed texts and JSON, as plain data; xgrammar's and vLLM's word for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from engine.interface.grammar_spec import GrammarKind, GrammarSpec


@dataclass(frozen=True, kw_only=True)
class Structure:
    """JSON that follows a schema, between two texts."""

    begin: str
    schema: Mapping[str, object]
    end: str


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What stands before the answer: text between two marks, of so many tokens at most."""

    begin_token_ids: tuple[int, ...]  # of the mark that begins it; none: the prompt ends with it
    end: str  # the mark that ends it
    end_token_ids: tuple[int, ...]  # the same, where it is forced
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class StructuralTag:
    """`opening`, 1 to `max_structures` structures with `separator` between them, and `closing`.

    With `trigger`, which every structure begins with, the answer may say anything else, too, but what follows
    a trigger is a structure. With `begin_token_id`, a control token that stands before `opening`, it may say
    anything before that. With `first` it is this, or a text that does not begin with that character. With
    `answer` it is this, or JSON that follows that schema. Without structures it is such JSON, or any text.
    """

    structures: tuple[Structure, ...] = ()
    opening: str = ""
    separator: str = ""
    closing: str = ""
    max_structures: int = 1
    trigger: str | None = None
    begin_token_id: int | None = None
    first: str | None = None
    answer: Mapping[str, object] | None = None
    thought: Thought | None = None

    @property
    def is_json_only(self) -> bool:
        """True where all text is JSON or fixed."""
        has_text = self.begin_token_id is not None and self.answer is None
        return self.is_constrained and not (self.trigger or has_text or self.first or self.thought)

    @property
    def is_constrained(self) -> bool:
        """False where any text may stand behind the thought."""
        return bool(self.structures) or self.answer is not None

    def spec(self) -> GrammarSpec:
        """Return the grammar."""
        source = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))
        return GrammarSpec(kind=GrammarKind.STRUCTURAL_TAG, source=source)


def read_structural_tag(source: str) -> StructuralTag:
    """Return the tag whose spec has this source; raises ValueError for another one."""
    try:
        members = json.loads(source)
        structures = tuple(Structure(**structure) for structure in members.pop("structures"))
        thought = members.pop("thought")
        if thought is not None:
            ids = {name: tuple(thought[name]) for name in ("begin_token_ids", "end_token_ids")}
            thought = Thought(**{**thought, **ids})
        return StructuralTag(structures=structures, thought=thought, **members)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no structural tag: {error}") from error
