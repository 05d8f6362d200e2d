"""Responses, whole and in events."""

from __future__ import annotations

from typing import TypedDict

from draftline_client._fields import Fields
from draftline_client._parse.chat import parse_token_logprob
from draftline_client._parse.common import parse_delivered, parse_draftline_usage
from draftline_client.types import (
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseDeltaEvent,
    ResponseDoneEvent,
    ResponseEvent,
    ResponseFunctionCall,
    ResponseItem,
    ResponseItemEvent,
    ResponseMessage,
    ResponsePart,
    ResponsePartEvent,
    ResponseReasoning,
    ResponseStatusEvent,
    ResponseUsage,
)

_STATUS_EVENTS = frozenset(f"response.{s}" for s in ("created", "in_progress", "completed", "incomplete"))
_ITEM_EVENTS = frozenset({"response.output_item.added", "response.output_item.done"})
_PART_EVENTS = frozenset({"response.content_part.added", "response.content_part.done"})
_GROWING = ("output_text", "reasoning_text", "function_call_arguments")
_DELTA_EVENTS = frozenset(f"response.{kind}.delta" for kind in _GROWING)
_DONE_EVENTS = frozenset(f"response.{kind}.done" for kind in _GROWING)


class _EventFields(TypedDict):
    type: str
    sequence_number: int | None


class _ItemFields(TypedDict):
    type: str
    id: str | None
    status: str | None


def parse_response(fields: Fields) -> Response:
    """Read the reply of POST /v1/responses."""
    return Response(
        id=fields.string("id"),
        created_at=fields.integer("created_at"),
        completed_at=fields.optional_integer("completed_at"),
        model=fields.string("model"),
        status=fields.string("status"),
        output=fields.records("output", _parse_item),
        usage=fields.optional_record("usage", _parse_usage),
        seed=fields.optional_integer("seed"),
        system_fingerprint=fields.optional_string("system_fingerprint"),
        previous_response_id=fields.optional_string("previous_response_id"),
        **parse_delivered(fields),
        extra=fields.extra(),
    )


def parse_response_event(fields: Fields) -> ResponseEvent:
    """Read one event of a streamed POST /v1/responses."""
    kind, number = fields.string("type"), fields.optional_integer("sequence_number")
    event: _EventFields = {"type": kind, "sequence_number": number}
    if kind in _STATUS_EVENTS:
        response = fields.record("response", parse_response)
        return ResponseStatusEvent(**event, response=response, extra=fields.extra())
    if kind in _ITEM_EVENTS:
        index, item = fields.integer("output_index"), fields.record("item", _parse_item)
        return ResponseItemEvent(**event, output_index=index, item=item, extra=fields.extra())
    if kind in _PART_EVENTS:
        return _parse_part_event(fields, event)
    if kind in _DELTA_EVENTS:
        return _parse_delta_event(fields, event)
    if kind in _DONE_EVENTS:
        return _parse_done_event(fields, event)
    return ResponseEvent(**event, extra=fields.extra())


def _parse_part_event(fields: Fields, event: _EventFields) -> ResponsePartEvent:
    return ResponsePartEvent(
        **event,
        item_id=fields.string("item_id"),
        output_index=fields.integer("output_index"),
        content_index=fields.integer("content_index"),
        part=fields.record("part", _parse_part),
        extra=fields.extra(),
    )


def _parse_delta_event(fields: Fields, event: _EventFields) -> ResponseDeltaEvent:
    return ResponseDeltaEvent(
        **event,
        item_id=fields.string("item_id"),
        output_index=fields.integer("output_index"),
        content_index=fields.optional_integer("content_index"),
        delta=fields.string("delta"),
        logprobs=fields.optional_records("logprobs", parse_token_logprob),
        extra=fields.extra(),
    )


def _parse_done_event(fields: Fields, event: _EventFields) -> ResponseDoneEvent:
    return ResponseDoneEvent(
        **event,
        item_id=fields.string("item_id"),
        output_index=fields.integer("output_index"),
        content_index=fields.optional_integer("content_index"),
        text=fields.optional_string("text"),
        name=fields.optional_string("name"),
        arguments=fields.optional_string("arguments"),
        logprobs=fields.optional_records("logprobs", parse_token_logprob),
        extra=fields.extra(),
    )


def _parse_item(fields: Fields) -> ResponseItem:
    kind = fields.string("type")
    item: _ItemFields = {
        "type": kind,
        "id": fields.optional_string("id"),
        "status": fields.optional_string("status"),
    }
    if kind == "message":
        role, content = fields.string("role"), fields.optional_records("content", _parse_part)
        return ResponseMessage(**item, role=role, content=content, extra=fields.extra())
    if kind == "reasoning":
        content, summary = fields.optional_records("content", _parse_part), fields.objects("summary")
        return ResponseReasoning(**item, content=content, summary=summary, extra=fields.extra())
    if kind == "function_call":
        return ResponseFunctionCall(
            **item,
            call_id=fields.string("call_id"),
            name=fields.string("name"),
            arguments=fields.string("arguments"),
            extra=fields.extra(),
        )
    return ResponseItem(**item, extra=fields.extra())


def _parse_part(fields: Fields) -> ResponsePart:
    return ResponsePart(
        type=fields.string("type"),
        text=fields.string("text"),
        logprobs=fields.optional_records("logprobs", parse_token_logprob),
        extra=fields.extra(),
    )


def _parse_usage(fields: Fields) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=fields.integer("input_tokens"),
        output_tokens=fields.integer("output_tokens"),
        total_tokens=fields.integer("total_tokens"),
        input_tokens_details=fields.optional_record("input_tokens_details", _parse_input_details),
        output_tokens_details=fields.optional_record("output_tokens_details", _parse_output_details),
        draftline=fields.optional_record("draftline", parse_draftline_usage),
        extra=fields.extra(),
    )


def _parse_input_details(fields: Fields) -> InputTokensDetails:
    return InputTokensDetails(cached_tokens=fields.optional_integer("cached_tokens"), extra=fields.extra())


def _parse_output_details(fields: Fields) -> OutputTokensDetails:
    reasoning_tokens = fields.optional_integer("reasoning_tokens")
    return OutputTokensDetails(reasoning_tokens=reasoning_tokens, extra=fields.extra())
