"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import RequestError
from engine.interface.outputs import FinishReason
from server.answers import merge
from server.api.body import run_sized
from server.api.call import Call, answer_whole, open_call
from server.api.chat_prompt import prepare_chat_prompt
from server.api.encoding import json_response
from server.api.json_object import Json
from server.api.messages.content_blocks import ContentBlocks
from server.api.messages.fields import translate_message
from server.api.messages.writer import MessageWriter
from server.api.preparation import prepare_chat
from server.api.renamed_fields import renamed
from server.api.reply import WholeChoice
from server.api.requests import reading, server_state
from server.api.schemas import ChatCompletionRequest
from server.api.sse import EventStream
from server.api.text_delta import TextDelta
from server.api.usage import Usage
from server.middleware import request_context

MessageCall = Call[ChatCompletionRequest]

_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "reasoning.max_tokens": "thinking.budget_tokens",
    "reasoning.effort": "thinking",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "user": "metadata.user_id",
    ".function.parameters": ".input_schema",
    ".function": "",
}
"""Fields of a chat completion, and what a message calls them."""

_STOP_REASONS = {
    FinishReason.LENGTH: "max_tokens",
    FinishReason.STOP: "end_turn",
    FinishReason.TOOL_CALLS: "tool_use",
}


async def create_message(request: Request) -> Response:
    """Answer a conversation, streamed or whole."""
    call = await open_call(
        request,
        ChatCompletionRequest,
        prepare_chat,
        id_prefix="msg",
        translate=translate_message,
        names=_NAMES,
    )
    if call.body.stream:
        writer = MessageWriter(_begun(call), usage_of=_usage, ending_of=_ending)
        return EventStream(call.generation, writer, request_context(request))
    return await answer_whole(request, call, _whole)


async def count_message_tokens(request: Request) -> Response:
    """Return how many tokens the prompt of a message has; nothing is generated."""
    try:
        async with reading(request, ChatCompletionRequest, translate=translate_message) as parsed:
            model = server_state(request).loaded_model()
            size = sum(len(message.content) for message in parsed.body.messages)
            prompt = await run_sized(model.work_size(size), prepare_chat_prompt, parsed.body, model)
            return json_response({"input_tokens": len(prompt.token_ids)})
    except RequestError as error:
        raise renamed(error, _NAMES) from None


def _whole(call: MessageCall, choices: Sequence[WholeChoice]) -> object:
    [whole] = choices
    content = ContentBlocks()
    is_parsed = call.preparation.options.answer is not None
    content.push(merge(whole.answer if is_parsed else [whole.text]))
    content.finish()
    return _message(call, content.blocks, _ending(whole), _usage(call.generation.usage))


def _begun(call: MessageCall) -> Json:
    """Return the message before its first token; what of it was cached is not known yet."""
    num_tokens = len(call.preparation.prompts[0].token_ids)
    usage = Usage(prompt_tokens=num_tokens, completion_tokens=0, cached_tokens=0)
    return _message(call, [], {"stop_reason": None, "stop_sequence": None}, _usage(usage))


def _message(call: MessageCall, content: list[Json], ending: Json, usage: Json) -> Json:
    header = call.header
    return {
        "id": header.id.replace("-", "_"),
        "type": "message",
        "role": "assistant",
        "model": header.model,
        "content": content,
        **ending,
        "usage": usage,
        "seed": call.preparation.prompts[0].seed,
        **header.warnings_to_json(),
    }


def _ending(end: TextDelta | WholeChoice) -> Json:
    assert end.finish_reason is not None
    if end.stop is not None and end.finish_reason is FinishReason.STOP:
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stop}
    return {"stop_reason": _STOP_REASONS[end.finish_reason], "stop_sequence": None}


def _usage(usage: Usage) -> Json:
    """Return the counts as Anthropic has them: what came from the cache is no input token."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        **({} if usage.cache is None else {"draftline": usage.cache_to_json()}),
    }
