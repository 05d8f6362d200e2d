"""POST /v1/cache/lookup: what the prefix cache has of a prompt now; nothing runs and nothing changes."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import QueueFullError, RequestError
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from server.api.body import JsonObject, parse_json_object, read_body, run_sized
from server.api.cache_explanation import explanation_to_json
from server.api.chat_prompt import prepare_chat_prompt
from server.api.encoding import json_response
from server.api.errors import queue_full
from server.api.known_fields import FieldWarning
from server.api.prompts import encode_prompt
from server.api.reply import warnings_to_json
from server.api.requests import check_model_name, is_strict, server_state
from server.api.schemas import CacheLookupRequest, ChatCompletionRequest, check_strict, parse_body
from server.api.sse import while_connected
from server.api.token_budget import check_room
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import ServedModel

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """A prompt to look up."""

    token_ids: tuple[int, ...]
    client_salt: str | None
    warnings: tuple[FieldWarning, ...]


async def look_up_cache(request: Request) -> Response:
    """Say how much of a prompt is cached for the caller's key, and why not more."""
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)
    with state.bodies.holding() as held:
        raw = await read_body(request, held, max_size=state.limits.max_body_size)
        lookup = await run_sized(
            model.work_size(len(raw)), lambda: _read(parse_json_object(raw), model, strict=strict)
        )
    generation = GenerationRequest(
        prompt_token_ids=lookup.token_ids,
        params=SamplingParams(max_tokens=1),
        cache_salt=cache_salt(context.tenant, lookup.client_salt),
    )
    try:
        looking = model.engine.look_up_cache(generation)
        explanation = await while_connected(request.receive, looking)
    except QueueFullError as error:
        raise queue_full(str(error), retry_after=_RETRY_SECONDS) from None
    return json_response(
        {
            "object": "draftline.cache_lookup",
            "model": model.name,
            **explanation_to_json(explanation, model.tokenizer),
            **warnings_to_json(lookup.warnings),
        }
    )


def _read(fields: JsonObject, model: ServedModel, *, strict: bool) -> _Lookup:
    """Read a prompt, or messages with all that chat's prompt is made of; raises RequestError."""
    has_messages = fields.get("messages") is not None
    if has_messages is (fields.get("prompt") is not None):
        raise RequestError("give either prompt or messages", param="prompt")
    lookup = _read_chat(fields, model, strict) if has_messages else _read_prompt(fields, model, strict)
    check_strict(lookup.warnings, strict=strict)
    return lookup


def _read_prompt(fields: JsonObject, model: ServedModel, strict: bool) -> _Lookup:
    parsed = parse_body(CacheLookupRequest, fields, strict=strict)
    check_model_name(parsed.body.model, model)
    assert parsed.body.prompt is not None
    token_ids, warnings = encode_prompt(parsed.body.prompt, model)
    check_room(token_ids, model, prompt_field="prompt")
    return _Lookup(
        token_ids=token_ids, client_salt=parsed.body.cache_salt, warnings=parsed.warnings + warnings
    )


def _read_chat(fields: JsonObject, model: ServedModel, strict: bool) -> _Lookup:
    parsed = parse_body(ChatCompletionRequest, fields, strict=strict)
    check_model_name(parsed.body.model, model)
    prompt = prepare_chat_prompt(parsed.body, model)
    check_room(prompt.token_ids, model, prompt_field="messages")
    return _Lookup(
        token_ids=prompt.token_ids,
        client_salt=parsed.body.cache_salt,
        warnings=parsed.warnings + prompt.warnings,
    )
