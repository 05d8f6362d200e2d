"""What the server says of itself and its model."""

from __future__ import annotations

from draftline_client._fields import Fields
from draftline_client._parse.common import (
    parse_cache_fields,
    parse_delivered,
    parse_prompt_details,
    parse_prompt_token,
    parse_usage,
)
from draftline_client.types import (
    Attention,
    CacheLookup,
    Distribution,
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    LikelyToken,
    Model,
    ModelList,
    OpenRequest,
    OpenRequestList,
    Tokenization,
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


def parse_open_request_list(fields: Fields) -> OpenRequestList:
    """Read the reply of GET /v1/requests."""
    return OpenRequestList(data=fields.records("data", _parse_open_request), extra=fields.extra())


def _parse_open_request(fields: Fields) -> OpenRequest:
    return OpenRequest(
        id=fields.string("id"),
        endpoint=fields.string("endpoint"),
        state=fields.string("state"),
        position=fields.optional_integer("position"),
        prompt_tokens=fields.integer("prompt_tokens"),
        completion_tokens=fields.integer("completion_tokens"),
        created=fields.integer("created"),
        age=fields.number("age"),
        extra=fields.extra(),
    )


def parse_cache_lookup(fields: Fields) -> CacheLookup:
    """Read the reply of POST /v1/cache/lookup."""
    return CacheLookup(
        **parse_cache_fields(fields),
        **parse_delivered(fields),
        model=fields.string("model"),
        extra=fields.extra(),
    )


def parse_distribution(fields: Fields) -> Distribution:
    """Read the reply of POST /v1/distribution."""
    return Distribution(
        model=fields.string("model"),
        vocab_size=fields.integer("vocab_size"),
        logprobs=fields.floats("logprobs"),
        usage=fields.record("usage", parse_usage),
        top_logprobs=fields.optional_records("top_logprobs", _parse_likely_token),
        **parse_delivered(fields),
        extra=fields.extra(),
    )


def _parse_likely_token(fields: Fields) -> LikelyToken:
    return LikelyToken(
        token_id=fields.integer("token_id"),
        token=fields.string("token"),
        logprob=fields.number("logprob"),
        bytes=fields.optional_integers("bytes"),
        extra=fields.extra(),
    )


def parse_attention(fields: Fields) -> Attention:
    """Read the reply of POST /v1/attention."""
    return Attention(
        model=fields.string("model"),
        num_layers=fields.integer("num_layers"),
        num_heads=fields.integer("num_heads"),
        layer=fields.integer("layer"),
        tokens=fields.records("tokens", parse_prompt_token),
        attention=fields.number_cube("attention"),
        **parse_delivered(fields),
        extra=fields.extra(),
    )


def parse_embedding_list(fields: Fields) -> EmbeddingList:
    """Read the reply of POST /v1/embeddings."""
    return EmbeddingList(
        data=fields.records("data", _parse_embedding),
        model=fields.string("model"),
        usage=fields.record("usage", _parse_embedding_usage),
        **parse_delivered(fields),
        extra=fields.extra(),
    )


def _parse_embedding(fields: Fields) -> Embedding:
    return Embedding(
        index=fields.integer("index"), embedding=fields.floats("embedding"), extra=fields.extra()
    )


def _parse_embedding_usage(fields: Fields) -> EmbeddingUsage:
    return EmbeddingUsage(
        prompt_tokens=fields.integer("prompt_tokens"),
        total_tokens=fields.integer("total_tokens"),
        prompt_tokens_details=fields.optional_record("prompt_tokens_details", parse_prompt_details),
        extra=fields.extra(),
    )
