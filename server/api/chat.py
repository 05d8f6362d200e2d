"""POST /v1/chat/completions."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.outputs import TokenLogprobs
from server.api.call import Call, answer_whole, open_call
from server.api.chunks import CHAT_SHAPE, ChunkWriter, event
from server.api.logprobs import chat_logprobs, prompt_logprobs
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
        **_prompt_logprobs(call, choices[0].prompt_logprobs),
        **call.header.warnings_to_json(),
    }


def _choice(call: ChatCall, index: int, whole: WholeChoice) -> dict[str, object]:
    choice: dict[str, object] = {
        "index": index,
        "message": {"role": "assistant", "content": whole.text, "refusal": None},
        "logprobs": _logprobs(call, whole.logprobs),
        "finish_reason": whole.finish_reason,
        "seed": call.preparation.prompts[0].seed,
    }
    if call.body.return_provenance:
        choice["provenance"] = [token.to_json() for token in whole.provenance]
    if call.body.return_token_ids:
        choice["token_ids"] = whole.token_ids
    return choice


def _logprobs(call: ChatCall, tokens: Sequence[ScoredToken]) -> dict[str, object] | None:
    return chat_logprobs(tokens, call.tokenizer) if call.body.logprobs else None


def _prompt_logprobs(call: ChatCall, scores: Sequence[TokenLogprobs]) -> dict[str, object]:
    num_top = call.preparation.logprobs.prompt
    if num_top is None:
        return {}
    return {"prompt_logprobs": prompt_logprobs(scores, call.tokenizer, num_top=num_top)}


def _prompt_token_ids(call: ChatCall) -> dict[str, object]:
    if not call.body.return_token_ids:
        return {}
    return {"prompt_token_ids": call.preparation.prompts[0].token_ids}


def _writer(call: ChatCall) -> ChunkWriter:
    members = call.header.to_json("chat.completion.chunk")
    if call.wants_usage:
        members["usage"] = None  # until the last chunk

    def prompt_event(index: int, scores: Sequence[TokenLogprobs]) -> bytes:
        if index > 0:  # all choices have one prompt
            return b""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
        return event({**members, "choices": [choice], **_prompt_logprobs(call, scores)})

    return ChunkWriter(
        members,
        CHAT_SHAPE,
        opening=_opening(call, members),
        seeds=[call.preparation.prompts[0].seed] * call.preparation.n,
        with_usage=call.wants_usage,
        with_token_ids=call.body.return_token_ids,
        logprobs=lambda tokens: _logprobs(call, tokens),
        prompt_event=prompt_event if call.preparation.logprobs.scores_prompt else None,
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
