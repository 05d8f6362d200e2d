"""AnswerPlan: how a chat's answer is to be read, and what a grammar makes of the tools that it may call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarKind, GrammarSpec
from server.answers import AnswerParser, ReasoningSplitter, Tool, ToolFormat
from server.answers.formats import LLAMA3_JSON, MAX_CALLS
from server.answers.reasoning import BEGIN, END
from server.api.grammars import RequestedGrammar
from server.api.schemas import ChatCompletionRequest
from server.api.tool_fields import check_choice
from server.serving import ServedModel


@dataclass(frozen=True, kw_only=True)
class ToolPlan:
    """The tools of one request."""

    tools: tuple[Tool, ...]  # that the template shows
    names: tuple[str, ...]  # of those that may be called
    format: ToolFormat
    is_required: bool
    is_prefilled: bool  # the prompt ends with the mark that begins calls
    max_calls: int | None  # None: as many as the answer has
    grammar: RequestedGrammar | None


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """What the parser of an answer must know."""

    tools: ToolPlan | None
    has_reasoning: bool  # the model may think before it answers
    in_reasoning: bool = False  # the prompt ends where a thought begins
    shown_token_ids: frozenset[int] = frozenset()  # control tokens that the parser must see

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
    is_special = form.begin_is_special and model.tokenizer.find_special(form.begin) is not None
    is_prefilled = is_required and form.kind == "tagged" and is_special
    if form.kind == "tagged" and form.begin_is_special and not is_special:
        form = replace(form, opening=form.begin + form.opening)
    max_calls = MAX_CALLS if body.parallel_tool_calls else 1
    return ToolPlan(
        tools=tools,
        names=tuple(tool.name for tool in callable_tools),
        format=form,
        is_required=is_required,
        is_prefilled=is_prefilled,
        max_calls=None if body.parallel_tool_calls else 1,
        grammar=_grammar(
            body, callable_tools, form, is_required=is_required, is_special=is_special, max_calls=max_calls
        ),
    )


def _grammar(
    body: ChatCompletionRequest,
    tools: Sequence[Tool],
    form: ToolFormat,
    *,
    is_required: bool,
    is_special: bool,
    max_calls: int,
) -> RequestedGrammar | None:
    """Return what makes calls valid: always where one is required, else where a tool is strict."""
    if body.structured_outputs is not None and not is_required:
        message = "structured_outputs and tools exclude each other, unless tool_choice is none or required"
        raise RequestError(message, param="structured_outputs")
    answer = None if is_required else _answer_schema(body)
    if not is_required and answer is None and not any(tool.strict for tool in tools):
        return None
    if not is_required and is_special and form.kind == "tagged":
        raise RequestError(
            f"strict tools and response_format cannot be honoured with tool_choice auto: this model begins "
            f"calls with the control token {form.begin}, which no grammar can name; use required",
            param="tools",
        )
    source = form.structural_tag(tools, max_calls=max_calls, is_optional=not is_required, answer=answer)
    return RequestedGrammar(field="tools", spec=GrammarSpec(kind=GrammarKind.STRUCTURAL_TAG, source=source))


def _answer_schema(body: ChatCompletionRequest) -> str | None:
    """Return the JSON schema that an answer without calls follows, None: free text."""
    spec = None if body.response_format is None else body.response_format.grammar
    if spec is None:
        return None
    return '{"type":"object"}' if spec.kind is GrammarKind.JSON_OBJECT else spec.source


def plan_answer(tools: ToolPlan | None, prompt: str, model: ServedModel) -> AnswerPlan | None:
    """Return how the answer to a rendered prompt is read; None where all of it is content."""
    bare = prompt.rstrip()
    has_reasoning = model.has_reasoning and not bare.endswith(END)
    if tools is None and not has_reasoning:
        return None
    marks = [BEGIN, END] if has_reasoning else []
    if tools is not None:
        marks += [tools.format.begin, tools.format.end, *tools.format.inner_marks]
    special = [model.tokenizer.find_special(mark) for mark in marks if mark]
    return AnswerPlan(
        tools=tools,
        has_reasoning=has_reasoning,
        in_reasoning=has_reasoning and bare.endswith(BEGIN),
        shown_token_ids=frozenset(token_id for token_id in special if token_id is not None),
    )


def template_variables(body: ChatCompletionRequest, model: ServedModel) -> dict[str, object]:
    """Return what a chat template is told beside messages and tools."""
    variables: dict[str, object] = dict(body.chat_template_kwargs)
    known = frozenset() if model.chat_template is None else model.chat_template.variables
    if body.reasoning_effort is not None:
        if "reasoning_effort" in known:
            variables.setdefault("reasoning_effort", body.reasoning_effort)
        elif "enable_thinking" in known:
            variables.setdefault("enable_thinking", body.reasoning_effort != "none")
    return variables
