"""POST /v1/responses, and what is kept of responses."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import RequestError
from server.answers import merge
from server.api.body import JsonObject
from server.api.call import Call, answer_whole, open_call
from server.api.encoding import json_response
from server.api.errors import ApiError, describe
from server.api.json_object import Json
from server.api.logprobs import chat_logprobs
from server.api.preparation import prepare_chat
from server.api.reply import WholeChoice
from server.api.requests import server_state
from server.api.responses.fields import TranslatedResponse, translate_response
from server.api.responses.output_items import OutputItems
from server.api.responses.store import ResponseStore
from server.api.responses.writer import ResponseWriter, status_of
from server.api.schemas import ChatCompletionRequest
from server.api.sse import EventStream
from server.api.token_scores import ScoredToken
from server.api.usage import Usage
from server.middleware import request_context

ResponseCall = Call[ChatCompletionRequest]

_CHAT_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    ".function": "",
}
"""Fields of a chat completion, and what a response calls them."""


@dataclass
class _Translator:
    """Reads the body once, on whatever thread, and keeps what the answer needs of it."""

    store: ResponseStore
    tenant: bytes
    result: TranslatedResponse | None = field(default=None)

    def __call__(self, body: JsonObject) -> Mapping[str, object]:
        previous = body.get("previous_response_id")
        earlier: list[Json] = [] if previous is None else self._earlier(previous)
        if body.get("store") is True and not self.store.capacity:
            raise RequestError("store: this server keeps no responses (--response-store)", param="store")
        self.result = translate_response(body, earlier)
        return self.result.chat

    def _earlier(self, previous: object) -> list[Json]:
        where = "previous_response_id"
        if not self.store.capacity:
            raise RequestError(f"{where}: this server keeps no responses (--response-store)", param=where)
        stored = self.store.find(self.tenant, previous) if isinstance(previous, str) else None
        if stored is None:
            message = f"{where}: there is no response {describe(previous)}, or no longer"
            raise ApiError(404, message, param=where, code="previous_response_not_found")
        return stored.messages


async def create_response(request: Request) -> Response:
    """Answer an input, streamed or whole."""
    state, context = server_state(request), request_context(request)
    translator = _Translator(state.responses, context.tenant)
    call = await open_call(
        request,
        ChatCompletionRequest,
        prepare_chat,
        id_prefix="resp",
        translate=translator,
        names=_CHAT_NAMES,
    )
    translated = translator.result
    assert translated is not None

    def keep(response: Json) -> None:
        if state.responses.capacity and translated.echo["store"]:
            messages = [*translated.messages, *_as_messages(response["output"])]
            state.responses.put(context.tenant, response, messages)

    def snapshot(status: str, usage: Usage | None, output: list[Json]) -> Json:
        return _response(call, translated, status, usage, output)

    def logprobs(tokens: Sequence[ScoredToken]) -> list[object]:
        return _logprobs(call, tokens)

    if call.body.stream:
        writer = ResponseWriter(snapshot, logprobs=logprobs, keep=keep)
        return EventStream(call.generation, writer, context)
    return await answer_whole(request, call, _whole(snapshot, logprobs, keep))


async def retrieve_response(request: Request) -> Response:
    """Return a response that was kept."""
    state = server_state(request)
    stored = state.responses.find(request_context(request).tenant, request.path_params["response_id"])
    if stored is None:
        raise _not_found(request)
    return json_response(stored.response)


async def delete_response(request: Request) -> Response:
    """Forget a response that was kept."""
    response_id = request.path_params["response_id"]
    if not server_state(request).responses.delete(request_context(request).tenant, response_id):
        raise _not_found(request)
    return json_response({"id": response_id, "object": "response", "deleted": True})


def _not_found(request: Request) -> ApiError:
    message = f"there is no response {describe(request.path_params['response_id'])}, or no longer"
    return ApiError(404, message, param="response_id", code="response_not_found")


def _whole(
    snapshot: Callable[[str, Usage | None, list[Json]], Json],
    logprobs: Callable[[Sequence[ScoredToken]], list[object]],
    keep: Callable[[Json], None],
) -> Callable[[ResponseCall, Sequence[WholeChoice]], object]:
    def reply(call: ResponseCall, choices: Sequence[WholeChoice]) -> object:
        [whole] = choices
        output = OutputItems()
        is_parsed = call.preparation.options.answer is not None
        output.push_all(
            merge(whole.answer if is_parsed else [whole.text]),
            logprobs(whole.logprobs) if whole.logprobs else [],
        )
        assert whole.finish_reason is not None
        status = status_of(whole.finish_reason)
        output.finish(status)
        response = snapshot(status, call.generation.usage, output.items)
        keep(response)
        return response

    return reply


def _response(
    call: ResponseCall, translated: TranslatedResponse, status: str, usage: Usage | None, output: list[Json]
) -> Json:
    header, body = call.header, call.body
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    params = call.preparation.requests[0].params
    return {
        "id": header.id.replace("-", "_"),
        "object": "response",
        "created_at": header.created,
        "completed_at": int(time.time()) if usage is not None else None,
        "status": status,
        "error": None,
        "incomplete_details": reason,
        "model": header.model,
        **translated.echo,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "output": output,
        "usage": None if usage is None else _usage(usage),
        "system_fingerprint": header.system_fingerprint,
        "seed": call.preparation.prompts[0].seed,
        **header.warnings_to_json(),
    }


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **({} if usage.cache is None else {"draftline": usage.cache_to_json()}),
    }


def _logprobs(call: ResponseCall, tokens: Sequence[ScoredToken]) -> list[object]:
    if not call.body.logprobs:
        return []
    content = chat_logprobs(tokens, call.tokenizer)["content"]
    assert isinstance(content, list)
    return content


def _as_messages(output: Sequence[Json]) -> list[Json]:
    """Return an answer as the message that a later response goes on from."""
    text, calls = "", []
    for item in output:
        if item["type"] == "message":
            text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            calls.append({"id": item["call_id"], "type": "function", "function": function})
    return [{"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}]
