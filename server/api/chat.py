"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.outputs import TokenLogprobs
from server.answers import ReasoningDelta, merge
from server.api.call import Call, answer_whole, open_call
from server.api.chunks import CHAT_SHAPE, ChunkWriter, event
from server.api.logprobs import chat_logprobs
from server.api.preparation import prepare_chat
from server.api.reply import WholeChoice
from server.api.schemas import ChatCompletionRequest
from server.api.sse import EventStream
from server.api.token_scores import ScoredToken
from server.middleware import request_context

ChatCall = Call[ChatCompletionRequest]


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, streamed or whole."""
    call = await open_call(request, ChatCompletionRequest, prepare_chat, id_prefix="chatcmpl")
    if call.body.stream:
        return EventStream(call.generation, _writer(call), request_context(request))
    return await answer_whole(request, call, _reply)


def _reply(call: ChatCall, choices: Sequence[WholeChoice]) -> dict[str, object]:
    return {
        **call.header.to_json("chat.completion"),
        "choices": [_choice(call, i, whole) for i, whole in enumerate(choices)],
        "usage": call.generation.usage.to_json(),
        **_prompt_token_ids(call),
        **call.prompt_logprobs(choices[0].prompt_logprobs),
        **call.header.warnings_to_json(),
    }


def _choice(call: ChatCall, index: int, whole: WholeChoice) -> dict[str, object]:
    return {
        "index": index,
        "message": _message(call, whole),
        "logprobs": _logprobs(call, whole.logprobs),
        "finish_reason": whole.finish_reason,
        "seed": call.preparation.prompts[0].seed,
        **call.choice_extras(whole),
    }


def _message(call: ChatCall, whole: WholeChoice) -> dict[str, object]:
    if call.preparation.options.answer is None:
        return {"role": "assistant", "content": whole.text, "refusal": None}
    content, thought, calls = "", "", list[dict[str, Any]]()
    for part in merge(whole.answer):
        if isinstance(part, str):
            content += part
        elif isinstance(part, ReasoningDelta):
            thought += part.text
        elif part.id is None:
            calls[-1]["function"]["arguments"] += part.arguments
        else:
            function = {"name": part.name, "arguments": part.arguments}
            calls.append({"id": part.id, "type": "function", "function": function})
    message: dict[str, object] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if thought:
        message["reasoning_content"] = thought
    return {**message, "tool_calls": calls} if calls else message


def _logprobs(call: ChatCall, tokens: Sequence[ScoredToken]) -> dict[str, object] | None:
    return chat_logprobs(tokens, call.tokenizer) if call.body.logprobs else None


def _prompt_token_ids(call: ChatCall) -> dict[str, object]:
    if not call.body.return_token_ids:
        return {}
    return {"prompt_token_ids": call.preparation.prompts[0].token_ids}


def _writer(call: ChatCall) -> ChunkWriter:
    members = call.chunk_members("chat.completion.chunk")

    def prompt_event(index: int, scores: Sequence[TokenLogprobs]) -> bytes:
        if index > 0:  # all choices have one prompt
            return b""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        return event({**members, "choices": [choice], **call.prompt_logprobs(scores)})

    return call.chunk_writer(
        members,
        CHAT_SHAPE,
        opening=_opening(call, members),
        logprobs=lambda tokens: _logprobs(call, tokens),
        prompt_event=prompt_event,
    )


def _opening(call: ChatCall, members: dict[str, object]) -> bytes:
    """Return the events that begin each choice."""
    events = b""
    for index in range(call.preparation.n):
        extras = {**_prompt_token_ids(call), **call.header.warnings_to_json()} if index == 0 else {}
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        events += event({**members, "choices": [choice], **extras})
    return events
