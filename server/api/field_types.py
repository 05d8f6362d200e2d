"""Types of the fields that have parsers of their own: what each is in Python, and in /docs."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from server.api.fields import (
    EFFORTS,
    ROLES,
    ChatMessage,
    Prompt,
    RequestedReasoning,
    StreamOptions,
    parse_allowed_token_ids,
    parse_bad_words,
    parse_input,
    parse_logit_bias,
    parse_messages,
    parse_one_prompt,
    parse_prediction,
    parse_prompt,
    parse_reasoning,
    parse_stop,
    parse_stop_token_ids,
    parse_stream_options,
    parse_template_variables,
    parse_token_ids,
)
from server.api.speculation import RequestedSpeculation, parse_speculation
from server.api.structure import Structure, parse_response_format, parse_structured_outputs
from server.api.tool_fields import RequestedTools, ToolChoice, parse_tool_choice, parse_tools

_IDS = {"type": "array", "items": {"type": "integer"}}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_PROMPT_SCHEMA = {"anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS}]}
_TEXT_PARTS = {
    "type": "array",
    "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
}
_MESSAGES_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, _TEXT_PARTS]},
            "name": {"type": "string"},
            "tool_call_id": {"type": "string"},
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "reasoning_content": {"type": "string"},
        },
    },
}
_SPECULATION_SCHEMA = {
    "type": "object",
    "properties": {
        "mode": {"enum": ["off", "auto", "draft", "ngram"]},
        "k": {"type": "integer", "minimum": 1, "maximum": 16},
    },
}
_BIAS_SCHEMA = {"type": "object", "additionalProperties": {"type": "number"}}
_FORMAT_SCHEMA = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]},
        "json_schema": {
            "type": "object",
            "required": ["schema"],
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "schema": {"type": "object"},
                "strict": {"type": "boolean"},
            },
        },
    },
}
_FUNCTION_SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
        "strict": {"type": "boolean"},
    },
}
_TOOLS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": {"const": "function"}, "function": _FUNCTION_SCHEMA},
    },
}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["function", "allowed_tools"]}},
        },
    ]
}
_REASONING_SCHEMA = {
    "type": "object",
    "properties": {
        "max_tokens": {"type": "integer", "minimum": 0},
        "effort": {"enum": list(EFFORTS)},
    },
}
_STRUCTURE_SCHEMA = {
    "type": "object",
    "properties": {
        "json": {"anyOf": [{"type": "object"}, {"type": "string"}]},
        "json_object": {"const": True},
        "regex": {"type": "string"},
        "choice": _STRINGS,
        "grammar": {"type": "string"},
    },
    "minProperties": 1,
    "maxProperties": 1,
}

PromptField = Annotated[tuple[Prompt, ...], PlainValidator(parse_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
OnePromptField = Annotated[
    Prompt, PlainValidator(parse_one_prompt), WithJsonSchema({"anyOf": [{"type": "string"}, _IDS]})
]
InputField = Annotated[tuple[Prompt, ...], PlainValidator(parse_input), WithJsonSchema(_PROMPT_SCHEMA)]
MessagesField = Annotated[
    tuple[ChatMessage, ...], PlainValidator(parse_messages), WithJsonSchema(_MESSAGES_SCHEMA)
]
StopField = Annotated[
    tuple[str, ...], PlainValidator(parse_stop), WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS]})
]
StopTokenIdsField = Annotated[frozenset[int], PlainValidator(parse_stop_token_ids), WithJsonSchema(_IDS)]
StreamOptionsField = Annotated[
    StreamOptions,
    PlainValidator(parse_stream_options),
    WithJsonSchema({"type": "object", "properties": {"include_usage": {"type": "boolean"}}}),
]
LogitBiasField = Annotated[
    Mapping[int, float], PlainValidator(parse_logit_bias), WithJsonSchema(_BIAS_SCHEMA)
]
AllowedTokenIdsField = Annotated[
    frozenset[int], PlainValidator(parse_allowed_token_ids), WithJsonSchema(_IDS)
]
BadWordsField = Annotated[tuple[str, ...], PlainValidator(parse_bad_words), WithJsonSchema(_STRINGS)]
ResponseFormatField = Annotated[
    Structure, PlainValidator(parse_response_format), WithJsonSchema(_FORMAT_SCHEMA)
]
StructuredOutputsField = Annotated[
    Structure, PlainValidator(parse_structured_outputs), WithJsonSchema(_STRUCTURE_SCHEMA)
]
ToolsField = Annotated[RequestedTools, PlainValidator(parse_tools), WithJsonSchema(_TOOLS_SCHEMA)]
ToolChoiceField = Annotated[
    ToolChoice, PlainValidator(parse_tool_choice), WithJsonSchema(_TOOL_CHOICE_SCHEMA)
]
SpeculationField = Annotated[
    RequestedSpeculation, PlainValidator(parse_speculation), WithJsonSchema(_SPECULATION_SCHEMA)
]
ReasoningField = Annotated[
    RequestedReasoning, PlainValidator(parse_reasoning), WithJsonSchema(_REASONING_SCHEMA)
]
PredictionField = Annotated[
    str, PlainValidator(parse_prediction), WithJsonSchema({"type": "object", "required": ["type", "content"]})
]
TemplateVariablesField = Annotated[
    Mapping[str, object], PlainValidator(parse_template_variables), WithJsonSchema({"type": "object"})
]
TokenIdsField = Annotated[tuple[int, ...], PlainValidator(parse_token_ids), WithJsonSchema(_IDS)]
