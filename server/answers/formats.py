r"""ToolFormat: how a family of models was trained to write calls, and how a grammar makes it write them.

hermes        <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>     Hermes, Qwen, SmolLM2 (a list)
llama3_json   {"name": "f", "parameters": {...}}                               Llama 3.1 and later
pythonic      [f(a=1), g(b="x")]                                               Llama 3.2 and 4
mistral       [TOOL_CALLS][{"name": "f", "arguments": {...}}]                  Mistral; later f[ARGS]{...}
"""

import json
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.interface.structural_tag import StructuralTag, Structure
from server.answers.bodies import Body, CallCounter, JsonBody, NamedBody, PythonicBody
from server.answers.parsers import BareParser, TaggedParser, ToolCallParser
from server.answers.parts import Tool

MAX_CALLS = 4
"""Calls of one answer where a grammar makes them."""

_ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One way to write calls."""

    name: str
    kind: Literal["tagged", "bare"]
    body: Literal["json", "mistral", "pythonic"] = "json"
    begin: str = ""  # before calls
    end: str = ""  # after them
    inner_marks: tuple[str, ...] = ()  # that may be control tokens, too
    begin_is_special: bool = False  # `begin` is a control token where the vocabulary has it
    # What a grammar makes the model write: `opening` call (`separator` call)* `closing`
    call_begin: str = '{{"name": {name}, "arguments": '
    call_end: str = "}}"
    opening: str = ""
    separator: str = ""
    closing: str = ""
    id_length: int = 24
    id_prefix: str = "call_"

    def new_id(self) -> str:
        """Return the id of a new call."""
        return self.id_prefix + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(self.id_length))

    def new_parser(self, names: Collection[str], *, in_call: bool = False) -> ToolCallParser:
        """Return a parser of one answer; with `in_call` the prompt ends with `begin`."""
        calls = CallCounter(names, self.new_id)

        def new_body(first: str) -> Body:
            if self.body == "pythonic":
                return PythonicBody(calls)
            return NamedBody(calls) if self.body == "mistral" and first not in "[{" else JsonBody(calls)

        if self.kind == "tagged":
            return TaggedParser(calls, new_body, begin=self.begin, end=self.end, in_call=in_call)
        first = "[" if self.body == "pythonic" else "{"
        return BareParser(calls, new_body, first=first, begin=self.begin, separator=self.separator.strip())

    def structural_tag(
        self,
        tools: Sequence[Tool],
        *,
        max_calls: int,
        is_optional: bool,
        answer: Mapping[str, object] | None = None,
        begin_token_id: int | None = None,
    ) -> StructuralTag:
        """Return the tag of answers that are one call or more and nothing else.

        With `is_optional` they may say anything, but a call that is begun is one of these, with arguments by
        the schema of a strict tool. `answer` is the JSON schema of answers without calls;
        `begin_token_id` is the control token that spells `begin`.
        """
        has_text = is_optional and answer is None and begin_token_id is None
        return StructuralTag(
            structures=tuple(
                Structure(
                    begin=self.call_begin.format(name=json.dumps(tool.name)),
                    schema=tool.parameters if tool.strict or not is_optional else {"type": "object"},
                    end=self.call_end.format(),
                )
                for tool in tools
            ),
            opening=self.opening,
            separator=self.separator,
            closing=self.closing,
            max_structures=max_calls,
            trigger=self.begin if has_text and self.kind == "tagged" else None,
            begin_token_id=begin_token_id,
            first="{" if has_text and self.kind == "bare" else None,
            answer=answer,
        )


HERMES = ToolFormat(
    name="hermes",
    kind="tagged",
    begin="<tool_call>",
    end="</tool_call>",
    call_begin='<tool_call>\n{{"name": {name}, "arguments": ',
    call_end="}}\n</tool_call>",
    separator="\n",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    kind="bare",
    begin="<|python_tag|>",
    begin_is_special=True,
    call_begin='{{"name": {name}, "parameters": ',
    separator="; ",
)
PYTHONIC = ToolFormat(name="pythonic", kind="bare", body="pythonic")
MISTRAL = ToolFormat(
    name="mistral",
    kind="tagged",
    body="mistral",
    begin="[TOOL_CALLS]",
    inner_marks=("[CALL_ID]", "[ARGS]"),
    begin_is_special=True,
    opening="[",
    separator=", ",
    closing="]",
    id_length=9,  # its template refuses others
    id_prefix="",
)
FORMATS = {one.name: one for one in (HERMES, LLAMA3_JSON, PYTHONIC, MISTRAL)}


def choose_format(chat_template: str) -> ToolFormat:
    """Return the format that a chat template shows its model; hermes, which the fallback shows, if none."""
    if "[TOOL_CALLS]" in chat_template:
        return MISTRAL
    if "<tool_call>" in chat_template:
        return HERMES
    if "<|python_tag|>" in chat_template or '"parameters": dictionary' in chat_template:
        return LLAMA3_JSON
    if "func_name1(params_name1" in chat_template:
        return PYTHONIC
    return HERMES
