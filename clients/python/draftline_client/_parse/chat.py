"""Answers to conversations, whole and in chunks."""

from __future__ import annotations

from draftline_client._fields import Fields
from draftline_client._parse.common import parse_delivered, parse_head, parse_provenance, parse_usage
from draftline_client._parse.completions import parse_prompt_logprobs
from draftline_client.types import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatMessage,
    Delta,
    FunctionCall,
    FunctionCallDelta,
    RenderedPrompt,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)


def parse_chat_completion(fields: Fields) -> ChatCompletion:
    """Read the reply of POST /v1/chat/completions."""
    return ChatCompletion(
        **parse_head(fields),
        choices=fields.records("choices", _parse_chat_choice),
        usage=fields.record("usage", parse_usage),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=parse_prompt_logprobs(fields),
        extra=fields.extra(),
    )


def parse_chat_completion_chunk(fields: Fields) -> ChatCompletionChunk:
    """Read one event of a streamed POST /v1/chat/completions."""
    return ChatCompletionChunk(
        **parse_head(fields),
        choices=fields.records("choices", _parse_chat_chunk_choice),
        usage=fields.optional_record("usage", parse_usage),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=parse_prompt_logprobs(fields),
        extra=fields.extra(),
    )


def parse_rendered_prompt(fields: Fields) -> RenderedPrompt:
    """Read the reply of POST /v1/chat/completions/render."""
    return RenderedPrompt(
        prompt=fields.string("prompt"),
        token_ids=fields.integers("token_ids"),
        count=fields.integer("count"),
        **parse_delivered(fields),
        extra=fields.extra(),
    )


def _parse_chat_choice(fields: Fields) -> ChatChoice:
    return ChatChoice(
        index=fields.integer("index"),
        message=fields.record("message", _parse_message),
        finish_reason=fields.optional_string("finish_reason"),
        logprobs=fields.optional_record("logprobs", _parse_chat_logprobs),
        seed=fields.optional_integer("seed"),
        token_ids=fields.optional_integers("token_ids"),
        provenance=fields.optional_records("provenance", parse_provenance),
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
        provenance=fields.optional_records("provenance", parse_provenance),
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
    content = fields.optional_records("content", parse_token_logprob)
    return ChatLogprobs(content=content, extra=fields.extra())


def parse_token_logprob(fields: Fields) -> TokenLogprob:
    """Read a token of an answer with its alternatives."""
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
