"""What many replies have: their head, usage, provenance, what the cache says."""

from __future__ import annotations

from typing import TypedDict

from draftline_client._fields import Fields
from draftline_client.types import (
    CacheEnd,
    CacheExplanation,
    CompletionTokensDetails,
    DraftlineUsage,
    PromptToken,
    PromptTokensDetails,
    RateLimits,
    ReplyWarning,
    SpeculationUsage,
    TokenProvenance,
    Usage,
)


class DeliveredFields(TypedDict):
    """The fields of `Delivered`."""

    warnings: tuple[ReplyWarning, ...]
    request_id: str | None
    rate_limits: RateLimits | None


class HeadFields(DeliveredFields):
    """The fields of `Reply`."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class CacheFields(TypedDict):
    """The fields of `CacheExplanation`."""

    prompt_tokens: int
    cached_tokens: int
    block_size: int
    end: CacheEnd


def parse_delivered(fields: Fields) -> DeliveredFields:
    """Read what the headers and the warnings say."""
    return {
        "warnings": fields.optional_records("warnings", _parse_warning),
        "request_id": fields.envelope.request_id,
        "rate_limits": fields.envelope.rate_limits,
    }


def parse_head(fields: Fields) -> HeadFields:
    """Read what every generation's reply and chunk begins with."""
    return {
        "id": fields.string("id"),
        "created": fields.integer("created"),
        "model": fields.string("model"),
        "system_fingerprint": fields.optional_string("system_fingerprint"),
        **parse_delivered(fields),
    }


def parse_usage(fields: Fields) -> Usage:
    """Read the token counts of a generation."""
    return Usage(
        prompt_tokens=fields.integer("prompt_tokens"),
        completion_tokens=fields.integer("completion_tokens"),
        total_tokens=fields.integer("total_tokens"),
        prompt_tokens_details=fields.optional_record("prompt_tokens_details", parse_prompt_details),
        completion_tokens_details=fields.optional_record(
            "completion_tokens_details", _parse_completion_details
        ),
        draftline=fields.optional_record("draftline", parse_draftline_usage),
        extra=fields.extra(),
    )


def parse_prompt_details(fields: Fields) -> PromptTokensDetails:
    """Read where a prompt's tokens came from."""
    return PromptTokensDetails(cached_tokens=fields.optional_integer("cached_tokens"), extra=fields.extra())


def parse_draftline_usage(fields: Fields) -> DraftlineUsage:
    """Read `usage.draftline`, whose cache is a list only where there are several prompts."""
    return DraftlineUsage(
        speculation=fields.optional_record("speculation", _parse_speculation_usage),
        cache=fields.records_or_one("cache", parse_cache_explanation),
        extra=fields.extra(),
    )


def parse_cache_explanation(fields: Fields) -> CacheExplanation:
    """Read what the prefix cache has of one prompt."""
    return CacheExplanation(**parse_cache_fields(fields), extra=fields.extra())


def parse_cache_fields(fields: Fields) -> CacheFields:
    """Read the fields of `CacheExplanation`."""
    return {
        "prompt_tokens": fields.integer("prompt_tokens"),
        "cached_tokens": fields.integer("cached_tokens"),
        "block_size": fields.integer("block_size"),
        "end": fields.record("end", _parse_cache_end),
    }


def _parse_cache_end(fields: Fields) -> CacheEnd:
    return CacheEnd(
        reason=fields.string("reason"),
        position=fields.integer("position"),
        cached=fields.optional_record("cached", parse_prompt_token),
        prompt=fields.optional_record("prompt", parse_prompt_token),
        extra=fields.extra(),
    )


def parse_prompt_token(fields: Fields) -> PromptToken:
    """Read a token of a prompt."""
    return PromptToken(token_id=fields.integer("token_id"), text=fields.string("text"), extra=fields.extra())


def parse_provenance(fields: Fields) -> TokenProvenance:
    """Read where a token came from."""
    return TokenProvenance(source=fields.string("source"), step=fields.integer("step"), extra=fields.extra())


def _parse_warning(fields: Fields) -> ReplyWarning:
    return ReplyWarning(
        message=fields.string("message"),
        param=fields.optional_string("param"),
        type=fields.optional_string("type"),
        extra=fields.extra(),
    )


def _parse_completion_details(fields: Fields) -> CompletionTokensDetails:
    return CompletionTokensDetails(
        reasoning_tokens=fields.optional_integer("reasoning_tokens"),
        accepted_prediction_tokens=fields.optional_integer("accepted_prediction_tokens"),
        rejected_prediction_tokens=fields.optional_integer("rejected_prediction_tokens"),
        extra=fields.extra(),
    )


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
