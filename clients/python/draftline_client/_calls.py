"""One call of each kind: what is sent, and how its reply is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar
from urllib.parse import quote

from draftline_client import _parse
from draftline_client._call import Call, delete, get, given, post
from draftline_client._fields import Fields
from draftline_client.options import (
    NOT_GIVEN,
    AttentionOptions,
    CacheLookupOptions,
    CallOptions,
    ChatOptions,
    CompletionOptions,
    DetokenizeOptions,
    DistributionOptions,
    EmbeddingOptions,
    InputItem,
    Message,
    NotGiven,
    Prompt,
    ResponseOptions,
    Timeout,
    TokenizeOptions,
)
from draftline_client.types import (
    Attention,
    CacheLookup,
    Distribution,
    EmbeddingList,
    Model,
    ModelList,
    OpenRequestList,
    RenderedPrompt,
    Response,
    Tokenization,
)

T_co = TypeVar("T_co", covariant=True)

_WITH_USAGE = {"stream_options": {"include_usage": True}}


def completion_call(
    prompt: Prompt, options: CompletionOptions, parse: Callable[[Fields], T_co], *, stream: bool
) -> Call[T_co]:
    """POST /v1/completions."""
    fields = {"prompt": prompt, **_generation(options, CompletionOptions.__optional_keys__, stream=stream)}
    return post("/v1/completions", fields, options, parse, stream=stream)


def chat_call(
    messages: Sequence[Message], options: ChatOptions, parse: Callable[[Fields], T_co], *, stream: bool
) -> Call[T_co]:
    """POST /v1/chat/completions."""
    fields = {"messages": messages, **_generation(options, ChatOptions.__optional_keys__, stream=stream)}
    return post("/v1/chat/completions", fields, options, parse, stream=stream)


def says_stream_options(options: CompletionOptions | ChatOptions) -> bool:
    """Tell whether the caller says what a stream is to hold besides its text; else usage is asked for."""
    is_given = not isinstance(options.get("stream_options", NOT_GIVEN), NotGiven)
    return is_given or "stream_options" in options.get("extra_body", {})


def render_call(messages: Sequence[Message], options: ChatOptions) -> Call[RenderedPrompt]:
    """POST /v1/chat/completions/render."""
    fields = {"messages": messages, **given(options, ChatOptions.__optional_keys__)}
    path = "/v1/chat/completions/render"
    return post(path, fields, options, _parse.parse_rendered_prompt, is_repeatable=True)


def response_call(
    given_input: str | Sequence[InputItem],
    options: ResponseOptions,
    parse: Callable[[Fields], T_co],
    *,
    stream: bool,
) -> Call[T_co]:
    """POST /v1/responses."""
    fields = {"input": given_input, **given(options, ResponseOptions.__optional_keys__)}
    return post("/v1/responses", fields, options, parse, stream=stream)


def stored_response_call(response_id: str, options: CallOptions) -> Call[Response]:
    """GET /v1/responses/{id}; raises ValueError for an empty id."""
    return get(_place("/v1/responses", response_id, "response_id"), _parse.parse_response, options)


def response_deletion_call(response_id: str, options: CallOptions) -> Call[None]:
    """DELETE /v1/responses/{id}; raises ValueError for an empty id."""
    return delete(_place("/v1/responses", response_id, "response_id"), options)


def embedding_call(texts: Prompt, options: EmbeddingOptions) -> Call[EmbeddingList]:
    """POST /v1/embeddings; base64 unless told otherwise, a third of the size."""
    fields = {"input": texts, **given(options, EmbeddingOptions.__optional_keys__)}
    fields.setdefault("encoding_format", "base64")
    return post("/v1/embeddings", fields, options, _parse.parse_embedding_list)


def cache_lookup_call(
    prompt: str | Sequence[int] | NotGiven,
    messages: Sequence[Message] | NotGiven,
    options: CacheLookupOptions,
) -> Call[CacheLookup]:
    """POST /v1/cache/lookup; raises TypeError unless exactly one of prompt and messages is given."""
    if isinstance(prompt, NotGiven) == isinstance(messages, NotGiven):
        raise TypeError("lookup() takes either prompt or messages")
    subject = {"prompt": prompt} if isinstance(messages, NotGiven) else {"messages": messages}
    fields = {**subject, **given(options, CacheLookupOptions.__optional_keys__)}
    return post("/v1/cache/lookup", fields, options, _parse.parse_cache_lookup, is_repeatable=True)


def distribution_call(prompt: str | Sequence[int], options: DistributionOptions) -> Call[Distribution]:
    """POST /v1/distribution."""
    fields = {"prompt": prompt, **given(options, DistributionOptions.__optional_keys__)}
    return post("/v1/distribution", fields, options, _parse.parse_distribution)


def attention_call(prompt: str | Sequence[int], options: AttentionOptions) -> Call[Attention]:
    """POST /v1/attention."""
    fields = {"prompt": prompt, **given(options, AttentionOptions.__optional_keys__)}
    return post("/v1/attention", fields, options, _parse.parse_attention)


def open_request_list_call(options: CallOptions) -> Call[OpenRequestList]:
    """GET /v1/requests."""
    return get("/v1/requests", _parse.parse_open_request_list, options)


def cancellation_call(request_id: str, options: CallOptions) -> Call[None]:
    """DELETE /v1/requests/{id}; raises ValueError for an empty id."""
    return delete(_place("/v1/requests", request_id, "request_id"), options)


def tokenize_call(
    text: str | NotGiven, messages: Sequence[Message] | NotGiven, options: TokenizeOptions
) -> Call[Tokenization]:
    """POST /tokenize; raises TypeError unless exactly one of text and messages is given."""
    if isinstance(text, NotGiven) == isinstance(messages, NotGiven):
        raise TypeError("tokenize() takes either text or messages")
    subject = {"prompt": text} if isinstance(messages, NotGiven) else {"messages": messages}
    fields = {**subject, **given(options, TokenizeOptions.__optional_keys__)}
    return post("/tokenize", fields, options, _parse.parse_tokenization, is_repeatable=True)


def detokenize_call(token_ids: Sequence[int], options: DetokenizeOptions) -> Call[str]:
    """POST /detokenize."""
    fields = {"tokens": token_ids, **given(options, DetokenizeOptions.__optional_keys__)}
    return post("/detokenize", fields, options, _parse.parse_text, is_repeatable=True)


def model_list_call(options: CallOptions) -> Call[ModelList]:
    """GET /v1/models."""
    return get("/v1/models", _parse.parse_model_list, options)


def model_call(model: str, options: CallOptions) -> Call[Model]:
    """GET /v1/models/{model}; raises ValueError for an empty name, which would list the models."""
    return get(_place("/v1/models", model, "model"), _parse.parse_model, options)


def version_call(options: CallOptions) -> Call[str]:
    """GET /version."""
    return get("/version", _parse.parse_version, options)


def probe_call(path: Literal["/health", "/ready"], timeout: Timeout) -> Call[bool]:
    """GET /health or /ready, whose status is the answer."""
    return Call(method="GET", path=path, parse=lambda _: True, is_repeatable=True, timeout=timeout)


def _generation(
    options: CompletionOptions | ChatOptions, names: frozenset[str], *, stream: bool
) -> Mapping[str, object]:
    fields = given(options, names)
    return {**fields, **_WITH_USAGE} if stream and not says_stream_options(options) else fields


def _place(path: str, name: str, argument: str) -> str:
    if not name:
        raise ValueError(f"{argument} must not be empty")
    return f"{path}/{quote(name, safe='')}"
