"""What a caller may say in one call: every field is optional, and a field left out is not sent.

NOT_GIVEN is the same as leaving the field out, for code that passes options on; None is sent as null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, TypeVar

import httpx

from draftline_client.types import ChatMessage, JsonObject, ResponseItem

if TYPE_CHECKING:
    from typing_extensions import Required

T = TypeVar("T")


class NotGiven:
    """The type of NOT_GIVEN."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"

    def __bool__(self) -> Literal[False]:
        return False


NOT_GIVEN = NotGiven()
"""The same as leaving an option out, for code that passes options on."""

Option: TypeAlias = T | NotGiven | None
"""An option's value; None is sent as null, which asks for the server's default."""

Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""A text, several texts, token ids, or several lists of token ids."""

Message: TypeAlias = JsonObject | ChatMessage
"""A message of a conversation: {"role": "user", "content": "..."}, or one of a reply as it came."""

InputItem: TypeAlias = JsonObject | ResponseItem
"""An item of a response's input: a message as above, the result of a call, or an item of an output."""

Timeout: TypeAlias = float | httpx.Timeout | None
"""Seconds for each of connecting, sending and waiting for the next bytes, or httpx's; None waits for ever."""

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""How much the model thinks; chat templates know some of these."""


class StreamOptions(TypedDict, total=False):
    """What a stream carries besides its text."""

    include_usage: bool  # a last chunk without choices holds the usage


class SpeculationOptions(TypedDict, total=False):
    """How the server may guess ahead; it never changes the text."""

    mode: Required[Literal["off", "auto", "draft", "ngram"]]  # where drafts come from
    k: int  # draft tokens per step


class StructuredOutputs(TypedDict, total=False):
    """What an answer must look like: exactly one of these."""

    json: JsonObject | str  # a JSON schema
    json_object: bool  # any JSON object
    regex: str  # matches the whole answer
    choice: Sequence[str]  # one of these strings
    grammar: str  # in Lark's notation


class JsonSchemaFormat(TypedDict, total=False):
    """A JSON schema with a name."""

    name: Required[str]  # yours
    schema: JsonObject  # that the answer follows
    description: str  # what the answer is for
    strict: bool  # the server always follows the schema


class ResponseFormat(TypedDict, total=False):
    """The form of an answer, as OpenAI's API has it."""

    type: Required[Literal["text", "json_object", "json_schema"]]  # any JSON object, or one of a schema
    json_schema: JsonSchemaFormat  # with json_schema


class FunctionDefinition(TypedDict, total=False):
    """A function that the model may call."""

    name: Required[str]  # letters, digits, dots, underscores and dashes
    description: str  # what it does, for the model
    parameters: JsonObject  # JSON schema of its arguments; without it, it takes none
    strict: bool  # arguments follow the schema in every call


class FunctionTool(TypedDict):
    """A tool of `chat.create`."""

    type: Literal["function"]  # there is no other kind
    function: FunctionDefinition  # what may be called


class FunctionName(TypedDict):
    """A function by its name."""

    name: str  # of one of the tools


class NamedTool(TypedDict):
    """One of the tools; as `tool_choice`, the one that the model must call."""

    type: Literal["function"]  # there is no other kind
    function: FunctionName  # which


class AllowedTools(TypedDict):
    """Some of the tools."""

    mode: Literal["auto", "required"]  # whether one of them must be called
    tools: Sequence[NamedTool]  # that may be called


class AllowedToolsChoice(TypedDict):
    """A `tool_choice` that leaves the model some of the tools."""

    type: Literal["allowed_tools"]  # of tool_choice
    allowed_tools: AllowedTools  # which, and whether one of them must be called


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice
"""Whether the model may or must call tools; or the one that it must call; or the ones to choose from."""


class ReasoningOptions(TypedDict, total=False):
    """How much the model thinks before it answers."""

    max_tokens: int  # of the thought; 0 answers at once
    effort: Effort  # for chat templates that know it


class Prediction(TypedDict):
    """A text that the answer resembles: drafts come from it."""

    type: Literal["content"]  # there is no other kind
    content: str | Sequence[JsonObject]  # text, or text parts


class CallOptions(TypedDict, total=False):
    """Options of any call; they describe the exchange, not the request's body."""

    timeout: Timeout | NotGiven  # seconds or httpx.Timeout in place of the client's; None waits for ever
    extra_headers: Mapping[str, str]  # sent besides, or in place of, the client's own
    extra_body: JsonObject  # fields newer than this library; may not repeat one given by name


class ScheduledOptions(CallOptions, total=False):
    """Fields of whatever the model runs for; ranges and defaults are the server's."""

    model: Option[str]  # the served one if left out
    cache_salt: Option[str]  # requests with different salts never share cached prefixes
    user: Option[str]  # accepted, not used
    priority: Option[int]  # a key's lower ones start first
    max_queue_ms: Option[int]  # ServiceUnavailableError if it has not started by then
    deadline_ms: Option[int]  # InternalServerError (504) if it is not complete by then


class SamplingOptions(ScheduledOptions, total=False):
    """Fields that every kind of generation shares."""

    min_tokens: Option[int]  # before which nothing ends the answer
    seed: Option[int]  # the same seed gives the same tokens
    temperature: Option[float]  # 0 takes the most likely token
    top_k: Option[int]  # likeliest tokens to choose among
    top_p: Option[float]  # of the probability to choose from
    min_p: Option[float]  # relative to the likeliest token
    typical_p: Option[float]  # locally typical sampling
    presence_penalty: Option[float]  # once for each token of the answer
    frequency_penalty: Option[float]  # each time a token is in the answer
    repetition_penalty: Option[float]  # for tokens of prompt and answer
    logit_bias: Option[Mapping[str, float] | Mapping[int, float]]  # by token id
    allowed_token_ids: Option[Sequence[int]]  # no other token is generated
    bad_words: Option[Sequence[str]]  # are never generated
    structured_outputs: Option[StructuredOutputs]  # what the answer must look like
    stop: Option[str | Sequence[str]]  # strings that end the answer
    stop_token_ids: Option[Sequence[int]]  # tokens that end the answer
    include_stop_str_in_output: Option[bool]  # keep what ended the answer in its text
    ignore_eos: Option[bool]  # go on after the model's own end tokens
    skip_special_tokens: Option[bool]  # leave them out of the text
    speculation: Option[SpeculationOptions]  # how to guess ahead; never changes the answer
    cache_explain: Option[bool]  # say in `usage.cache` what the prefix cache had, and why no more
    logprobs_mode: Option[Literal["raw", "processed"]]  # before or after all that shapes the choice


class GenerationOptions(SamplingOptions, total=False):
    """Fields that completions and chat share."""

    max_tokens: Option[int]  # 0 with echo or prompt_logprobs only scores the prompt
    max_completion_tokens: Option[int]  # another name of max_tokens
    n: Option[int]  # choices per prompt
    response_format: Option[ResponseFormat]  # what the answer must look like
    stream_options: Option[StreamOptions]  # if left out, streams ask for usage: `stream.usage`
    return_token_ids: Option[bool]  # of prompt and answer
    return_provenance: Option[bool]  # where each token came from
    prompt_logprobs: Option[int]  # likeliest tokens at each place of the prompt, 0 to 100


class CompletionOptions(GenerationOptions, total=False):
    """Fields of `completions.create` besides `prompt` and `stream`."""

    echo: Option[bool]  # begin the text with the prompt
    logprobs: Option[int]  # alternatives per token, 0 to 100
    best_of: Option[int]  # generate so many, return the n likeliest
    suffix: Option[str]  # text behind the answer: a code model fills in what is between


class TemplateOptions(TypedDict, total=False):
    """How a conversation becomes a prompt."""

    tools: Option[Sequence[FunctionTool]]  # that the model may call
    tool_choice: Option[ToolChoice]  # whether and which
    reasoning: Option[ReasoningOptions]  # how much to think before the answer
    reasoning_effort: Option[Effort]  # for chat templates that know it
    chat_template_kwargs: Option[JsonObject]  # further variables of the chat template
    continue_final_message: Option[bool]  # go on with the text of the last message
    add_generation_prompt: Option[bool]  # end the prompt where an answer begins


class ChatOptions(GenerationOptions, TemplateOptions, total=False):
    """Fields of `chat.create` and `chat.render` besides `messages` and `stream`."""

    logprobs: Option[bool]  # return the logprob of each token
    top_logprobs: Option[int]  # alternatives per token, 0 to 100; with logprobs
    parallel_tool_calls: Option[bool]  # let an answer have several calls
    prediction: Option[Prediction]  # a text that the answer resembles


class ResponseOptions(SamplingOptions, total=False):
    """Fields of `responses.create` besides `input` and `stream`."""

    instructions: Option[str]  # a system message before the input
    max_output_tokens: Option[int]  # of thought and answer
    previous_response_id: Option[str]  # of a stored response to go on from
    store: Option[bool]  # keep the response, if the server keeps any
    tools: Option[Sequence[JsonObject]]  # {"type": "function", "name": ..., "parameters": ...}
    tool_choice: Option[Literal["none", "auto", "required"] | JsonObject]  # {"type": "function", "name": ...}
    parallel_tool_calls: Option[bool]  # let a response have several calls
    text: Option[JsonObject]  # {"format": {"type": "json_schema", "name": ..., "schema": ...}}
    reasoning: Option[ReasoningOptions]  # how much to think before the answer
    top_logprobs: Option[int]  # alternatives per token, 0 to 100
    include: Option[Sequence[str]]  # message.output_text.logprobs
    metadata: Option[Mapping[str, str]]  # returned as it is
    chat_template_kwargs: Option[JsonObject]  # further variables of the chat template


class EmbeddingOptions(ScheduledOptions, total=False):
    """Fields of `embeddings.create` besides `input`."""

    dimensions: Option[int]  # return the first so many values, normalised anew
    encoding_format: Option[Literal["float", "base64"]]  # of the transfer; base64 if left out


class CacheLookupOptions(CallOptions, TemplateOptions, total=False):
    """Fields of `cache.lookup` besides `prompt` and `messages`."""

    model: Option[str]  # the served one if left out
    cache_salt: Option[str]  # as of the requests whose cache it is


class DistributionOptions(ScheduledOptions, total=False):
    """Fields of `distribution` besides `prompt`."""

    top_logprobs: Option[int]  # 0 to 100 likeliest tokens, with their texts and bytes


class AttentionOptions(CallOptions, total=False):
    """Fields of `attention` besides `prompt`."""

    model: Option[str]  # the served one if left out
    layer: Option[int]  # counted from 0, which is the default


class TokenizeOptions(CallOptions, total=False):
    """Fields of `tokenize` besides `text` and `messages`."""

    add_special_tokens: Option[bool]  # begin with the begin token or not
    add_generation_prompt: Option[bool]  # end rendered messages where an answer begins
    return_token_strs: Option[bool]  # the text of each token, too


class DetokenizeOptions(CallOptions, total=False):
    """Fields of `detokenize` besides the token ids."""

    skip_special_tokens: Option[bool]  # leave them out of the text
