"""Reply records from JSON objects: one function per record."""

from draftline_client._parse.chat import (
    parse_chat_completion,
    parse_chat_completion_chunk,
    parse_rendered_prompt,
)
from draftline_client._parse.completions import (
    parse_completion,
    parse_completion_chunk,
)
from draftline_client._parse.responses import (
    parse_response,
    parse_response_event,
)
from draftline_client._parse.server import (
    parse_attention,
    parse_cache_lookup,
    parse_distribution,
    parse_embedding_list,
    parse_model,
    parse_model_list,
    parse_open_request_list,
    parse_text,
    parse_tokenization,
    parse_version,
)

__all__ = [
    "parse_attention",
    "parse_cache_lookup",
    "parse_chat_completion",
    "parse_chat_completion_chunk",
    "parse_completion",
    "parse_completion_chunk",
    "parse_distribution",
    "parse_embedding_list",
    "parse_model",
    "parse_model_list",
    "parse_open_request_list",
    "parse_rendered_prompt",
    "parse_response",
    "parse_response_event",
    "parse_text",
    "parse_tokenization",
    "parse_version",
]
