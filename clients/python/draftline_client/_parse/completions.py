"""Completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Mapping

from draftline_client._fields import Fields
from draftline_client._parse.common import parse_head, parse_provenance, parse_usage
from draftline_client.types import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
)


def parse_completion(fields: Fields) -> Completion:
    """Read the reply of POST /v1/completions."""
    return Completion(
        **parse_head(fields),
        choices=fields.records("choices", _parse_completion_choice),
        usage=fields.record("usage", parse_usage),
        extra=fields.extra(),
    )


def parse_completion_chunk(fields: Fields) -> CompletionChunk:
    """Read one event of a streamed POST /v1/completions."""
    return CompletionChunk(
        **parse_head(fields),
        choices=fields.records("choices", _parse_completion_choice),
        usage=fields.optional_record("usage", parse_usage),
        extra=fields.extra(),
    )


def parse_prompt_logprobs(fields: Fields) -> PromptLogprobs | None:
    """Read what the model said of a prompt."""
    return fields.optional_records_or_nulls("prompt_logprobs", _parse_place_of_prompt)


def _parse_completion_choice(fields: Fields) -> CompletionChoice:
    return CompletionChoice(
        index=fields.integer("index"),
        text=fields.string("text"),
        finish_reason=fields.optional_string("finish_reason"),
        logprobs=fields.optional_record("logprobs", _parse_completion_logprobs),
        seed=fields.optional_integer("seed"),
        token_ids=fields.optional_integers("token_ids"),
        provenance=fields.optional_records("provenance", parse_provenance),
        prompt_token_ids=fields.optional_integers("prompt_token_ids"),
        prompt_logprobs=parse_prompt_logprobs(fields),
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


def _parse_place_of_prompt(fields: Fields) -> Mapping[int, PromptLogprob]:
    return fields.by_integer(_parse_prompt_logprob)


def _parse_prompt_logprob(fields: Fields) -> PromptLogprob:
    return PromptLogprob(
        logprob=fields.number("logprob"), decoded_token=fields.string("decoded_token"), extra=fields.extra()
    )
