"""What a caller may say in one call: every field is optional, and a field left out is not sent.

NOT_GIVEN is the same as leaving the field out, for code that passes options on; None is sent as null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

import httpx

from draftline_client.types import ChatMessage

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

Option: TypeAlias = T | NotGiven | None
Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Message: TypeAlias = Mapping[str, Any] | ChatMessage
Timeout: TypeAlias = float | httpx.Timeout | None


class StreamOptions(TypedDict, total=False):
    """What a stream carries besides its text."""

    include_usage: bool  # a last chunk without choices holds the usage


class SpeculationOptions(TypedDict, total=False):
    """How the server may guess ahead; it never changes the text."""

    mode: Required[Literal["off", "auto", "draft", "ngram"]]
    k: int  # draft tokens per step


class StructuredOutputs(TypedDict, total=False):
    """What an answer must look like: exactly one of these."""

    json: Mapping[str, Any] | str  # a JSON schema
    json_object: bool  # any JSON object
    regex: str  # matches the whole answer
    choice: Sequence[str]
    grammar: str  # in Lark's notation


class CallOptions(TypedDict, total=False):
    """Options of any call; they describe the exchange, not the request's body."""

    timeout: Timeout | NotGiven  # seconds or httpx.Timeout in place of the client's; None waits for ever
    extra_headers: Mapping[str, str]  # sent besides, or in place of, the client's own
    extra_body: Mapping[str, Any]  # fields newer than this library; may not repeat one given by name


class GenerationOptions(CallOptions, total=False):
    """Fields that both kinds of generation share; ranges and defaults are the server's."""

    model: Option[str]
    max_tokens: Option[int]  # 0 with echo or prompt_logprobs only scores the prompt
    max_completion_tokens: Option[int]  # another name of max_tokens
    min_tokens: Option[int]
    n: Option[int]  # choices per prompt
    seed: Option[int]  # the same seed gives the same tokens
    temperature: Option[float]  # 0 takes the most likely token
    top_k: Option[int]
    top_p: Option[float]
    min_p: Option[float]
    typical_p: Option[float]
    presence_penalty: Option[float]
    frequency_penalty: Option[float]
    repetition_penalty: Option[float]
    logit_bias: Option[Mapping[str, float] | Mapping[int, float]]  # by token id
    allowed_token_ids: Option[Sequence[int]]
    bad_words: Option[Sequence[str]]
    response_format: Option[Mapping[str, Any]]
    structured_outputs: Option[StructuredOutputs]
    stop: Option[str | Sequence[str]]
    stop_token_ids: Option[Sequence[int]]
    include_stop_str_in_output: Option[bool]
    ignore_eos: Option[bool]
    skip_special_tokens: Option[bool]  # leave them out of the text
    stream_options: Option[StreamOptions]
    user: Option[str]
    priority: Option[int]
    deadline_ms: Option[int]
    speculation: Option[SpeculationOptions]
    cache_salt: Option[str]  # requests with different salts never share cached prefixes
    cache_explain: Option[bool]
    return_token_ids: Option[bool]
    return_provenance: Option[bool]
    prompt_logprobs: Option[int]  # likeliest tokens at each place of the prompt
    logprobs_mode: Option[Literal["raw", "processed"]]  # before or after all that shapes the choice


class CompletionOptions(GenerationOptions, total=False):
    """Fields of `completions.create` besides `prompt` and `stream`."""

    echo: Option[bool]  # begin the text with the prompt
    logprobs: Option[int]  # alternatives per token
    best_of: Option[int]  # generate so many, return the n likeliest
    suffix: Option[str]


class ChatOptions(GenerationOptions, total=False):
    """Fields of `chat.create` besides `messages` and `stream`."""

    logprobs: Option[bool]
    top_logprobs: Option[int]
    tools: Option[Sequence[Mapping[str, Any]]]
    tool_choice: Option[str | Mapping[str, Any]]
    parallel_tool_calls: Option[bool]
    reasoning: Option[Mapping[str, Any]]  # {"max_tokens": 512}
    reasoning_effort: Option[str]
    prediction: Option[Mapping[str, Any]]  # {"type": "content", "content": "..."}: drafts come from it
    chat_template_kwargs: Option[Mapping[str, Any]]
    continue_final_message: Option[bool]
    add_generation_prompt: Option[bool]


class TokenizeOptions(CallOptions, total=False):
    """Fields of `tokenize` besides `text` and `messages`."""

    add_special_tokens: Option[bool]
    add_generation_prompt: Option[bool]  # end rendered messages where an answer begins
    return_token_strs: Option[bool]


class DetokenizeOptions(CallOptions, total=False):
    """Fields of `detokenize` besides the token ids."""

    skip_special_tokens: Option[bool]  # leave them out of the text
