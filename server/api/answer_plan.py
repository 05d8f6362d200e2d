"""AnswerPlan: how a chat's answer is to be read, and what a grammar makes of the tools that it may call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind
from engine.interface.structural_tag import StructuralTag, Thought
from server.answers import AnswerParser, ReasoningSplitter, Tool, ToolFormat
from server.answers.formats import LLAMA3_JSON, MAX_CALLS
from server.answers.reasoning import BEGIN, END
from server.api.known_fields import FieldWarning
from server.api.limits import MAX_WARNINGS
from server.api.schemas import ChatCompletionRequest
from server.api.tool_fields import check_choice
from server.serving import ServedModel


@dataclass(frozen=True, kw_only=True)
class ToolPlan:
    """The tools of one request."""

    tools: tuple[Tool, ...]  # that the template shows
    names: tuple[str, ...]  # of those that may be called
    format: ToolFormat
    is_prefilled: bool  # the prompt ends with the mark that begins calls
    max_calls: int | None  # None: as many as the answer has
    tag: StructuralTag | None  # what a grammar makes of them


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """What the parser of an answer must know."""

    tools: ToolPlan | None
    has_reasoning: bool  # the model may think before it answers
    in_reasoning: bool = False  # the prompt ends where a thought begins
    shown_token_ids: frozenset[int] = frozenset()  # control tokens that the parser must see
    tag: StructuralTag | None = None  # what a grammar makes of the answer

    def new_parser(self) -> AnswerParser:
        """Return a parser for one choice."""
        tools, calls = self.tools, None
        if tools is not None:
            calls = tools.format.new_parser(tools.names, in_call=tools.is_prefilled)
        return AnswerParser(
            reasoning=ReasoningSplitter(in_reasoning=self.in_reasoning) if self.has_reasoning else None,
            tool_calls=calls,
            max_calls=None if tools is None else tools.max_calls,
        )


def plan_tools(body: ChatCompletionRequest, model: ServedModel) -> ToolPlan | None:
    """Return the plan for a request's tools, None without; raises RequestError."""
    tools, choice = body.tools.tools, body.tool_choice
    check_choice(choice, tools)
    if not tools or choice.mode == "none":
        return None
    callable_tools = [tool for tool in tools if choice.names is None or tool.name in choice.names]
    is_required = choice.mode == "required"
    form = model.tool_format
    if is_required and form.body == "pythonic":
        form = LLAMA3_JSON  # no grammar describes Python's literals by a JSON schema
    begin_token_id = None
    if form.kind == "tagged" and form.begin_is_special:
        begin_token_id = model.tokenizer.find_special(form.begin)
        if begin_token_id is None:
            form = replace(form, opening=form.begin + form.opening)
    max_calls = MAX_CALLS if body.parallel_tool_calls else 1
    return ToolPlan(
        tools=tools,
        names=tuple(tool.name for tool in callable_tools),
        format=form,
        is_prefilled=is_required and begin_token_id is not None,
        max_calls=None if body.parallel_tool_calls else 1,
        tag=_tag(
            body,
            callable_tools,
            form,
            is_required=is_required,
            begin_token_id=None if is_required else begin_token_id,
            max_calls=max_calls,
        ),
    )


def _tag(
    body: ChatCompletionRequest,
    tools: Sequence[Tool],
    form: ToolFormat,
    *,
    is_required: bool,
    begin_token_id: int | None,
    max_calls: int,
) -> StructuralTag | None:
    """Return what makes calls valid: always where one is required, else where a tool is strict."""
    if body.structured_outputs is not None and not is_required:
        message = "structured_outputs and tools exclude each other, unless tool_choice is none or required"
        raise RequestError(message, param="structured_outputs")
    answer = None if is_required else _answer_schema(body)
    if not is_required and answer is None and not any(tool.strict for tool in tools):
        return None
    return form.structural_tag(
        tools,
        max_calls=max_calls,
        is_optional=not is_required,
        answer=answer,
        begin_token_id=begin_token_id,
    )


def _answer_schema(body: ChatCompletionRequest) -> Mapping[str, object] | None:
    """Return the JSON schema that an answer without calls follows, None: free text."""
    spec = None if body.response_format is None else body.response_format.grammar
    if spec is None:
        return None
    schema: Mapping[str, object] = {"type": "object"}
    if spec.kind is not GrammarKind.JSON_OBJECT:
        schema = json.loads(spec.source)
    return schema


def plan_answer(
    body: ChatCompletionRequest, tools: ToolPlan | None, prompt: str, model: ServedModel
) -> AnswerPlan | None:
    """Return how the answer to a rendered prompt is read; None where all of it is content."""
    bare = prompt.rstrip()
    has_reasoning = model.has_reasoning and not bare.endswith(END) and not _has_other_grammar(body, tools)
    if tools is None and not has_reasoning:
        return None
    in_reasoning = has_reasoning and bare.endswith(BEGIN)
    marks = [BEGIN, END] if has_reasoning else []
    if tools is not None:
        marks += [tools.format.begin, tools.format.end, *tools.format.inner_marks]
    special = [model.tokenizer.find_special(mark) for mark in marks if mark]
    tag = _tag_of_answer(body, tools)
    budget = body.reasoning.max_tokens
    if has_reasoning and (budget is not None or (in_reasoning and tag is not None)):
        most = model.engine.limits.max_model_len if budget is None else budget
        encode = model.tokenizer.encode
        thought = Thought(
            begin_token_ids=() if in_reasoning else tuple(encode(BEGIN, add_bos=False)),
            end=END,
            end_token_ids=tuple(encode(END, add_bos=False)),
            max_tokens=most,
        )
        tag = replace(tag or StructuralTag(), thought=thought)
    return AnswerPlan(
        tools=tools,
        has_reasoning=has_reasoning,
        in_reasoning=in_reasoning,
        shown_token_ids=frozenset(token_id for token_id in special if token_id is not None),
        tag=tag,
    )


def _has_other_grammar(body: ChatCompletionRequest, tools: ToolPlan | None) -> bool:
    """Tell whether a grammar that leaves no room for a thought describes the whole answer."""
    outputs = body.structured_outputs
    return tools is None and outputs is not None and outputs.grammar is not None


def _tag_of_answer(body: ChatCompletionRequest, tools: ToolPlan | None) -> StructuralTag | None:
    if tools is not None:
        return tools.tag
    schema = _answer_schema(body)
    return None if schema is None else StructuralTag(answer=schema)


def template_variables(
    body: ChatCompletionRequest, model: ServedModel
) -> tuple[dict[str, object], tuple[FieldWarning, ...]]:
    """Return what a chat template is told beside messages and tools, and what of it it does not know."""
    known = frozenset[str]() if model.chat_template is None else model.chat_template.variables
    variables: dict[str, object] = dict(body.chat_template_kwargs)
    warnings = [
        FieldWarning(param=f"chat_template_kwargs.{name}", message=f"the chat template does not use {name}")
        for name in list(variables)[:MAX_WARNINGS]
        if name not in known
    ]
    effort = body.reasoning_effort or body.reasoning.effort
    if effort is not None:
        if "reasoning_effort" in known:
            variables.setdefault("reasoning_effort", effort)
        elif "enable_thinking" in known:
            variables.setdefault("enable_thinking", effort != "none")
        else:
            name = "reasoning_effort" if body.reasoning_effort else "reasoning.effort"
            warnings.append(
                FieldWarning(param=name, message=f"{name} had no effect: the model has no such choice")
            )
    if body.reasoning.max_tokens is not None and not model.has_reasoning:
        name = "reasoning.max_tokens"
        warnings.append(FieldWarning(param=name, message=f"{name} had no effect: the model does not reason"))
    return variables, tuple(warnings)
