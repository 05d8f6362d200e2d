"""Reply records from JSON objects: one function per record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from draftline_client._fields import Fields
from draftline_client.types import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionTokensDetails,
    Delta,
    DraftlineUsage,
    FunctionCall,
    FunctionCallDelta,
    Model,
    ModelList,
    PromptLogprob,
    PromptLogprobs,
    PromptTokensDetails,
    ReplyWarning,
    SpeculationUsage,
    Tokenization,
    TokenLogprob,
    TokenProvenance,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
)


class _Head(TypedDict):
    id: str
    created: int
    model: str
    system_fingerprint: str | None
    warnings: tuple[ReplyWarning, ...]
    request_id: str | None


def _parse_head(fields: Fields) -> _Head:
    return {
        "id": fields.string("id"),
        "created": fields.integer("created"),
        "model": fields.string("model"),
        "system_fingerprint": fields.optional_string("system_fingerprint"),
        "warnings": fields.optional_records("warnings", _parse_warning),
        "request_id": fields.request_id,
    }


def parse_completion(fields: Fields) -> Completion:
    """Read the reply of POST /v1/completions."""
    return Completion(
        **_parse_head(fields),
        choices=fields.records("choices", _parse_completion_choice),
        usage=fields.record("usage", _parse_usage),
        extra=fields.extra(),
    )


def parse_completion_chunk(fields: Fields) -> CompletionChunk:
    """Read one event of a streamed POST /v1/completions."""
    return CompletionChunk(
        **_parse_head(fields),
        choices=fields.records("choices", _parse_completion_choice),
        usage=fields.optional_record("usage", _parse_usage),
        extra=fields.extra(),
    )


def parse_chat_completion(fields: Fields) -> ChatCompletion:
    """Read the reply of POST /v1/chat/completions."""
    return ChatCompletion(
        **_parse_head(fields),
        choices=fields.records("choices", _parse_chat_choice),
        usage=fields.record("usage", _parse_usage),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=_parse_prompt_logprobs(fields),
        extra=fields.extra(),
    )


def parse_chat_completion_chunk(fields: Fields) -> ChatCompletionChunk:
    """Read one event of a streamed POST /v1/chat/completions."""
    return ChatCompletionChunk(
        **_parse_head(fields),
        choices=fields.records("choices", _parse_chat_chunk_choice),
        usage=fields.optional_record("usage", _parse_usage),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=_parse_prompt_logprobs(fields),
        extra=fields.extra(),
    )


def parse_model(fields: Fields) -> Model:
    """Read the reply of GET /v1/models/{id}."""
    return Model(
        id=fields.string("id"),
        created=fields.integer("created"),
        owned_by=fields.string("owned_by"),
        max_model_len=fields.optional_integer("max_model_len"),
        extra=fields.extra(),
    )


def parse_model_list(fields: Fields) -> ModelList:
    """Read the reply of GET /v1/models."""
    return ModelList(data=fields.records("data", parse_model), extra=fields.extra())


def parse_tokenization(fields: Fields) -> Tokenization:
    """Read the reply of POST /tokenize."""
    return Tokenization(
        token_ids=fields.integers("tokens"),
        count=fields.integer("count"),
        max_model_len=fields.integer("max_model_len"),
        token_strs=fields.optional_strings("token_strs"),
        extra=fields.extra(),
    )


def parse_text(fields: Fields) -> str:
    """Read the reply of POST /detokenize."""
    return fields.string("prompt")


def parse_version(fields: Fields) -> str:
    """Read the reply of GET /version."""
    return fields.string("version")


def _parse_warning(fields: Fields) -> ReplyWarning:
    return ReplyWarning(
        message=fields.string("message"),
        param=fields.optional_string("param"),
        type=fields.optional_string("type"),
        extra=fields.extra(),
    )


def _parse_usage(fields: Fields) -> Usage:
    return Usage(
        prompt_tokens=fields.integer("prompt_tokens"),
        completion_tokens=fields.integer("completion_tokens"),
        total_tokens=fields.integer("total_tokens"),
        prompt_tokens_details=fields.optional_record("prompt_tokens_details", _parse_prompt_details),
        completion_tokens_details=fields.optional_record(
            "completion_tokens_details", _parse_completion_details
        ),
        draftline=fields.optional_record("draftline", _parse_draftline_usage),
        extra=fields.extra(),
    )


def _parse_prompt_details(fields: Fields) -> PromptTokensDetails:
    return PromptTokensDetails(cached_tokens=fields.optional_integer("cached_tokens"), extra=fields.extra())


def _parse_completion_details(fields: Fields) -> CompletionTokensDetails:
    return CompletionTokensDetails(
        reasoning_tokens=fields.optional_integer("reasoning_tokens"),
        accepted_prediction_tokens=fields.optional_integer("accepted_prediction_tokens"),
        rejected_prediction_tokens=fields.optional_integer("rejected_prediction_tokens"),
        extra=fields.extra(),
    )


def _parse_draftline_usage(fields: Fields) -> DraftlineUsage:
    speculation = fields.optional_record("speculation", _parse_speculation_usage)
    return DraftlineUsage(speculation=speculation, extra=fields.extra())


def _parse_speculation_usage(fields: Fields) -> SpeculationUsage:
    return SpeculationUsage(
        drafted=fields.integer("drafted"),
        accepted=fields.integer("accepted"),
        verification_steps=fields.integer("verification_steps"),
        mean_accepted_length=fields.optional_number("mean_accepted_length"),
        source=fields.optional_string("source"),
        estimated_speedup=fields.optional_number("estimated_speedup"),
        extra=fields.extra(),
    )


def _parse_provenance(fields: Fields) -> TokenProvenance:
    return TokenProvenance(source=fields.string("source"), step=fields.integer("step"), extra=fields.extra())


def _parse_completion_choice(fields: Fields) -> CompletionChoice:
    return CompletionChoice(
        index=fields.integer("index"),
        text=fields.string("text"),
        finish_reason=fields.optional_string("finish_reason"),
        logprobs=fields.optional_record("logprobs", _parse_completion_logprobs),
        seed=fields.optional_integer("seed"),
        token_ids=fields.optional_integers("token_ids"),
        provenance=fields.optional_records("provenance", _parse_provenance),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=_parse_prompt_logprobs(fields),
        extra=fields.extra(),
    )


def _parse_completion_logprobs(fields: Fields) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=fields.strings("tokens"),
        token_logprobs=fields.optional_numbers("token_logprobs"),
        top_logprobs=fields.optional_mappings("top_logprobs"),
        text_offset=fields.optional_integers("text_offset"),
        extra=fields.extra(),
    )


def _parse_prompt_logprobs(fields: Fields) -> PromptLogprobs | None:
    return fields.optional_records_or_nulls("prompt_logprobs", _parse_place_of_prompt)


def _parse_place_of_prompt(fields: Fields) -> Mapping[int, PromptLogprob]:
    return fields.by_integer(_parse_prompt_logprob)


def _parse_prompt_logprob(fields: Fields) -> PromptLogprob:
    return PromptLogprob(
        logprob=fields.number("logprob"), decoded_token=fields.string("decoded_token"), extra=fields.extra()
    )


def _parse_chat_choice(fields: Fields) -> ChatChoice:
    return ChatChoice(
        index=fields.integer("index"),
        message=fields.record("message", _parse_message),
        finish_reason=fields.optional_string("finish_reason"),
        logprobs=fields.optional_record("logprobs", _parse_chat_logprobs),
        seed=fields.optional_integer("seed"),
        token_ids=fields.optional_integers("token_ids"),
        provenance=fields.optional_records("provenance", _parse_provenance),
        extra=fields.extra(),
    )


def _parse_chat_chunk_choice(fields: Fields) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=fields.integer("index"),
        delta=fields.record("delta", _parse_delta),
        finish_reason=fields.optional_string("finish_reason"),
        logprobs=fields.optional_record("logprobs", _parse_chat_logprobs),
        seed=fields.optional_integer("seed"),
        token_ids=fields.optional_integers("token_ids"),
        provenance=fields.optional_records("provenance", _parse_provenance),
        extra=fields.extra(),
    )


def _parse_message(fields: Fields) -> ChatMessage:
    return ChatMessage(
        role=fields.string("role"),
        content=fields.optional_string("content"),
        reasoning_content=fields.optional_string("reasoning_content"),
        tool_calls=fields.optional_records("tool_calls", _parse_tool_call),
        extra=fields.extra(),
    )


def _parse_tool_call(fields: Fields) -> ToolCall:
    call_id, function = fields.string("id"), fields.record("function", _parse_function_call)
    return ToolCall(id=call_id, function=function, extra=fields.extra())


def _parse_function_call(fields: Fields) -> FunctionCall:
    name, arguments = fields.string("name"), fields.string("arguments")
    return FunctionCall(name=name, arguments=arguments, extra=fields.extra())


def _parse_delta(fields: Fields) -> Delta:
    return Delta(
        role=fields.optional_string("role"),
        content=fields.optional_string("content"),
        reasoning_content=fields.optional_string("reasoning_content"),
        tool_calls=fields.optional_records("tool_calls", _parse_tool_call_delta),
        extra=fields.extra(),
    )


def _parse_tool_call_delta(fields: Fields) -> ToolCallDelta:
    return ToolCallDelta(
        index=fields.integer("index"),
        id=fields.optional_string("id"),
        function=fields.record("function", _parse_function_call_delta),
        extra=fields.extra(),
    )


def _parse_function_call_delta(fields: Fields) -> FunctionCallDelta:
    name, arguments = fields.optional_string("name"), fields.optional_string("arguments")
    return FunctionCallDelta(name=name, arguments=arguments or "", extra=fields.extra())


def _parse_chat_logprobs(fields: Fields) -> ChatLogprobs:
    content = fields.optional_records("content", _parse_token_logprob)
    return ChatLogprobs(content=content, extra=fields.extra())


def _parse_token_logprob(fields: Fields) -> TokenLogprob:
    return TokenLogprob(
        token=fields.string("token"),
        logprob=fields.number("logprob"),
        bytes=fields.optional_integers("bytes"),
        top_logprobs=fields.optional_records("top_logprobs", _parse_top_logprob),
        extra=fields.extra(),
    )


def _parse_top_logprob(fields: Fields) -> TopLogprob:
    return TopLogprob(
        token=fields.string("token"),
        logprob=fields.number("logprob"),
        bytes=fields.optional_integers("bytes"),
        extra=fields.extra(),
    )
