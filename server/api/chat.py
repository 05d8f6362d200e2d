"""POST /v1/chat/completions."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call, open_call, run_to_end
from server.api.chunks import CHAT_SHAPE, ChunkWriter, event
from server.api.encoding import json_response
from server.api.preparation import prepare_chat
from server.api.reply import WholeChoice
from server.api.schemas import ChatCompletionRequest
from server.api.sse import EventStream
from server.middleware import request_context

ChatCall = Call[ChatCompletionRequest]


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, streamed or whole."""
    call = await open_call(request, ChatCompletionRequest, prepare_chat, id_prefix="chatcmpl")
    if call.body.stream:
        return EventStream(call.generation, _writer(call), request_context(request))
    choices = await run_to_end(request, call)
    return json_response(
        {
            **call.header.to_json("chat.completion"),
            "choices": [_choice(call, i, whole) for i, whole in enumerate(choices)],
            "usage": call.generation.usage.to_json(),
            **_prompt_token_ids(call),
            **call.header.warnings_to_json(),
        }
    )


def _choice(call: ChatCall, index: int, whole: WholeChoice) -> dict[str, object]:
    choice: dict[str, object] = {
        "index": index,
        "message": {"role": "assistant", "content": whole.text, "refusal": None},
        "logprobs": None,
        "finish_reason": whole.finish_reason,
        "seed": call.seeds[index],
    }
    if call.body.return_token_ids:
        choice["token_ids"] = whole.token_ids
    return choice


def _writer(call: ChatCall) -> ChunkWriter:
    members = call.header.to_json("chat.completion.chunk")
    if call.wants_usage:
        members["usage"] = None  # until the last chunk
    opening = b""
    for index in range(call.preparation.n):
        extras = {**_prompt_token_ids(call), **call.header.warnings_to_json()} if index == 0 else {}
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        opening += event({**members, "choices": [choice], **extras})
    return ChunkWriter(
        members,
        CHAT_SHAPE,
        opening=opening,
        seeds=call.seeds,
        with_usage=call.wants_usage,
        with_token_ids=call.body.return_token_ids,
    )


def _prompt_token_ids(call: ChatCall) -> dict[str, object]:
    if not call.body.return_token_ids:
        return {}
    return {"prompt_token_ids": call.preparation.prompts[0].token_ids}
