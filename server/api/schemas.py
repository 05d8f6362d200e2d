"""Bodies of the requests: types are checked here, ranges by SamplingParams and the parsers of fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.interface.errors import RequestError
from server.api.errors import ApiError, describe, shorten
from server.api.field_types import (
    AllowedTokenIdsField,
    BadWordsField,
    InputField,
    LogitBiasField,
    MessagesField,
    OnePromptField,
    PredictionField,
    PromptField,
    ReasoningField,
    ResponseFormatField,
    SpeculationField,
    StopField,
    StopTokenIdsField,
    StreamOptionsField,
    StructuredOutputsField,
    TemplateVariablesField,
    TokenIdsField,
    ToolChoiceField,
    ToolsField,
)
from server.api.fields import Effort, RequestedReasoning
from server.api.known_fields import FieldWarning, refuse_unsupported, warnings_about
from server.api.limits import MAX_CACHE_SALT_CHARS, MAX_MILLISECONDS, MAX_USER_CHARS
from server.api.speculation import RequestedSpeculation
from server.api.structure import with_structured_outputs
from server.api.tool_fields import RequestedTools, ToolChoice


class Body(BaseModel):
    """A body without lenience: 1.0 and "1" are no integers, 1 is no boolean, null is the default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, description="The served model; may be left out.")


class ScheduledBody(Body):
    """When a request is to run; nothing here changes an answer."""

    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description="-1000 to 1000; a key's lower ones start first.",
    )
    max_queue_ms: int | None = Field(
        None, ge=1, le=MAX_MILLISECONDS, description="A request that has not started by then is a 503."
    )
    deadline_ms: int | None = Field(
        None, ge=1, le=MAX_MILLISECONDS, description="An answer that is not complete by then is a 504."
    )


class GenerationBody(ScheduledBody):
    """What completions and chat have in common."""

    max_tokens: int | None = Field(
        None, description="Tokens to generate at most; 0, to score the prompt, with echo or prompt_logprobs."
    )
    max_completion_tokens: int | None = Field(None, description="OpenAI's newer name of max_tokens.")
    min_tokens: int = Field(0, description="Tokens before which nothing ends the answer.")
    temperature: float | None = Field(None, description="0 (greedy) to 2; the model's own default, else 1.")
    top_p: float | None = Field(None, description="Above 0 up to 1; the model's own default, else 1.")
    top_k: int | None = Field(None, description="-1 and 0 switch it off; the model's own default, else off.")
    min_p: float | None = Field(
        None, description="0 to 1, relative to the most likely token; the model's own default, else 0, off."
    )
    typical_p: float | None = Field(
        None, description="Above 0 up to 1: locally typical sampling; the model's own default, else 1, off."
    )
    presence_penalty: float = Field(0.0, description="-2 to 2, once for each token of the answer.")
    frequency_penalty: float = Field(0.0, description="-2 to 2, each time a token is in the answer.")
    repetition_penalty: float | None = Field(
        None, description="0.01 to 10, for tokens of prompt and answer; the model's own default, else 1, off."
    )
    logit_bias: LogitBiasField = Field({}, description="Up to 1024 token ids with -100 to 100 to add.")
    allowed_token_ids: AllowedTokenIdsField | None = Field(
        None, description="1 to 1024 token ids; no other token is generated."
    )
    bad_words: BadWordsField = Field(
        (), description="Up to 128 strings whose usual tokens, after a space or not, are never generated."
    )
    n: int = Field(1, description="Answers for each prompt.")
    seed: int | None = Field(None, description="-2**63 to 2**63-1; drawn and reported when left out.")
    stop: StopField = Field((), description="Up to 16 strings that end the answer.")
    stop_token_ids: StopTokenIdsField = Field(frozenset(), description="Token ids that end the answer.")
    include_stop_str_in_output: bool = Field(False, description="Keep what ended the answer in its text.")
    ignore_eos: bool = Field(False, description="Go on after the model's own end tokens.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    prompt_logprobs: int | None = Field(
        None, description="0 to 100 likeliest tokens, with the prompt's own, at each place of the prompt."
    )
    logprobs_mode: Literal["raw", "processed"] = Field(
        "raw",
        description="Logprobs of the answer: of the model itself, or of what all parameters make of it.",
    )
    response_format: ResponseFormatField | None = Field(
        None, description="text, any JSON object, or JSON that follows a schema (always strictly)."
    )
    structured_outputs: StructuredOutputsField | None = Field(
        None, description="One of: a JSON schema, any JSON object, a regex, a choice, a Lark grammar."
    )
    stream: bool = Field(False, description="Answer in server-sent events.")
    stream_options: StreamOptionsField | None = Field(None, description="Streams only.")
    cache_salt: str | None = Field(
        None, max_length=MAX_CACHE_SALT_CHARS, description="Shares cached prefixes only with equal salts."
    )
    user: str | None = Field(None, max_length=MAX_USER_CHARS, description="Accepted, not used.")
    return_token_ids: bool = Field(False, description="Return the ids of prompt and answer too.")
    speculation: SpeculationField = Field(
        RequestedSpeculation(), description="How to guess ahead, which never changes the answer."
    )
    return_provenance: bool = Field(False, description="Say of each token where it came from.")
    cache_explain: bool = Field(
        False, description="Say in usage how much of each prompt was cached, and why not more."
    )

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens each token of the answer comes with; None: no logprobs."""
        raise NotImplementedError


class CompletionRequest(GenerationBody):
    """POST /v1/completions."""

    prompt: PromptField = Field(description="Text or token ids, one prompt or a list of them.")
    suffix: str | None = Field(
        None, description="Text behind the answer: a code model fills in what is between. Without echo."
    )
    echo: bool = Field(False, description="Put the prompt before the answer, with logprobs if asked for.")
    logprobs: int | None = Field(None, description="0 to 100 likeliest tokens beside each chosen one.")
    best_of: int | None = Field(
        None, description="At least n: generate so many, return the n of the highest mean logprob."
    )

    @property
    def num_logprobs(self) -> int | None:
        """What `logprobs` says."""
        return self.logprobs


class ChatCompletionRequest(GenerationBody):
    """POST /v1/chat/completions."""

    messages: MessagesField = Field(description="The conversation; content is text or a list of text parts.")
    logprobs: bool = Field(False, description="Return the logprob of each token of the answer.")
    top_logprobs: int | None = Field(None, description="0 to 100 likeliest beside each; with logprobs.")
    tools: ToolsField = Field(RequestedTools(tools=()), description="Functions that the model may call.")
    tool_choice: ToolChoiceField = Field(
        ToolChoice(mode="auto"), description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool = Field(True, description="Let an answer have several calls.")
    prediction: PredictionField = Field(
        "", description="Text that the answer resembles: drafts come from it."
    )
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt where an answer begins; false with continue_final_message."
    )
    continue_final_message: bool = Field(False, description="Go on with the text of the last message.")
    reasoning_effort: Effort | None = Field(
        None,
        description="For chat templates that know it; none switches thinking off where that is possible.",
    )
    reasoning: ReasoningField = Field(
        RequestedReasoning(), description="max_tokens: of the thought; effort: as reasoning_effort."
    )
    chat_template_kwargs: TemplateVariablesField = Field(
        {}, description="Further variables of the chat template."
    )

    @property
    def num_logprobs(self) -> int | None:
        """What `logprobs` and `top_logprobs` say together."""
        return (self.top_logprobs or 0) if self.logprobs else None


class EmbeddingRequest(ScheduledBody):
    """POST /v1/embeddings."""

    input: InputField = Field(description="Text or token ids, one or a list of up to 2048.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: of little-endian float32, a third of the size."
    )
    dimensions: int | None = Field(None, description="Return the first so many values, normalised anew.")
    cache_salt: str | None = Field(
        None, max_length=MAX_CACHE_SALT_CHARS, description="Shares cached prefixes only with equal salts."
    )
    user: str | None = Field(None, max_length=MAX_USER_CHARS, description="Accepted, not used.")


class DistributionRequest(ScheduledBody):
    """POST /v1/distribution."""

    prompt: OnePromptField = Field(description="Text or token ids.")
    top_logprobs: int = Field(0, description="0 to 100 likeliest tokens, with their texts and bytes.")
    cache_salt: str | None = Field(
        None, max_length=MAX_CACHE_SALT_CHARS, description="Shares cached prefixes only with equal salts."
    )
    user: str | None = Field(None, max_length=MAX_USER_CHARS, description="Accepted, not used.")


class AttentionRequest(Body):
    """POST /v1/attention."""

    prompt: OnePromptField = Field(description="Text or token ids, at most 128 tokens.")
    layer: int = Field(0, description="From 0 to the number of layers, less 1.")


class CacheLookupRequest(Body):
    """POST /v1/cache/lookup: a prompt, or messages with what else makes a chat's prompt."""

    prompt: OnePromptField | None = Field(None, description="Text or token ids.")
    messages: MessagesField | None = Field(
        None, description="A conversation, with the other fields of /v1/chat/completions/render."
    )
    cache_salt: str | None = Field(
        None, max_length=MAX_CACHE_SALT_CHARS, description="As of the requests that are asked about."
    )


class TokenizeRequest(Body):
    """POST /tokenize: a prompt or messages, not both."""

    prompt: str | None = Field(None, description="Text to encode as it stands.")
    messages: MessagesField | None = Field(None, description="A conversation to render and encode.")
    add_special_tokens: bool | None = Field(None, description="Begin with the begin token or not.")
    add_generation_prompt: bool = Field(True, description="End the rendered messages where an answer starts.")
    return_token_strs: bool = Field(False, description="Return the text of each token too.")


class DetokenizeRequest(Body):
    """POST /detokenize."""

    tokens: TokenIdsField = Field(description="Token ids to decode.")
    skip_special_tokens: bool = Field(False, description="Leave special tokens out.")


BodyT = TypeVar("BodyT", bound=Body)


@dataclass(frozen=True, kw_only=True)
class ParsedBody(Generic[BodyT]):
    """A checked body, and what in it had no effect."""

    body: BodyT
    warnings: tuple[FieldWarning, ...]


def parse_body(schema: type[BodyT], fields: Mapping[str, object], *, strict: bool) -> ParsedBody[BodyT]:
    """Check `fields` against `schema`; with `strict`, a warning is an error.

    Raises RequestError naming the field, its value and the limit.
    """
    supported = schema.model_fields.keys()
    if issubclass(schema, GenerationBody):
        fields = with_structured_outputs(fields)
        refuse_unsupported(fields, supported)
    known = {name: value for name, value in fields.items() if name in supported and value is not None}
    try:
        body = schema.model_validate(known)
    except ValidationError as error:
        raise _request_error(error) from None
    unknown = [name for name, value in fields.items() if name not in supported and value is not None]
    warnings = (*warnings_about([*unknown, *_unknown_nested(body)], supported), *_without_effect(body))
    check_strict(warnings, strict=strict)
    return ParsedBody(body=body, warnings=warnings)


def check_strict(warnings: Sequence[FieldWarning], *, strict: bool) -> None:
    """Raise ApiError for the first warning where the client wants warnings to be errors."""
    if strict and warnings:
        raise ApiError(400, f"X-Strict: {warnings[0].message}", param=warnings[0].param, code="strict")


def _unknown_nested(body: Body) -> list[str]:
    names: list[str] = []
    if isinstance(body, ChatCompletionRequest | TokenizeRequest):
        names += [key for message in body.messages or () for key in message.unknown_keys]
    if isinstance(body, GenerationBody):
        for part in (
            body.stream_options,
            body.response_format,
            body.structured_outputs,
            body.speculation,
            body.tools if isinstance(body, ChatCompletionRequest) else None,
            body.reasoning if isinstance(body, ChatCompletionRequest) else None,
        ):
            names += part.unknown_keys if part is not None else ()
    return names


def _without_effect(body: Body) -> list[FieldWarning]:
    if not isinstance(body, GenerationBody):
        return []
    if "logprobs_mode" in body.model_fields_set and body.num_logprobs is None:
        return [FieldWarning(param="logprobs_mode", message="logprobs_mode had no effect without logprobs")]
    return []


_EXPECTED = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "model_type": "must be an object",
    "missing": "is required",
    "extra_forbidden": "is unknown",
}


def _request_error(error: ValidationError) -> RequestError:
    """Name the field, the value and the limit of the first of pydantic's errors."""
    first = error.errors(include_url=False, include_context=True)[0]
    where = shorten(".".join(str(part) for part in first["loc"]))
    expected = _EXPECTED.get(first["type"], "").format(**first.get("ctx", {})) or None
    if first["type"] == "string_too_long":
        length, limit = len(first["input"]), first["ctx"]["max_length"]
        expected = f"must have at most {limit} characters, got {length}"
    elif first["type"] == "literal_error":
        expected = f"must be {first['ctx']['expected']}"
    elif expected is None:
        expected = f"is not valid: {first['msg'].lower()}"
    shown = "" if first["type"] in ("missing", "string_too_long") else f", got {describe(first['input'])}"
    return RequestError(f"{where} {expected}{shown}", param=where)
