"""POST /v1/completions."""

from starlette.requests import Request
from starlette.responses import Response

from server.api.call import Call, open_call, run_to_end
from server.api.chunks import COMPLETION_SHAPE, ChunkWriter, event
from server.api.encoding import json_response
from server.api.preparation import PreparedPrompt, prepare_completion
from server.api.reply import WholeChoice
from server.api.schemas import CompletionRequest
from server.api.sse import EventStream
from server.middleware import request_context

CompletionCall = Call[CompletionRequest]


async def create_completion(request: Request) -> Response:
    """Continue one prompt or several, streamed or whole."""
    call = await open_call(request, CompletionRequest, prepare_completion, id_prefix="cmpl")
    if call.body.stream:
        return EventStream(call.generation, _writer(call), request_context(request))
    choices = await run_to_end(request, call)
    return json_response(
        {
            **call.header.to_json("text_completion"),
            "choices": [_choice(call, i, whole) for i, whole in enumerate(choices)],
            "usage": call.generation.usage.to_json(),
            **call.header.warnings_to_json(),
        }
    )


def _choice(call: CompletionCall, index: int, whole: WholeChoice) -> dict[str, object]:
    choice = {
        "index": index,
        "text": _prompt(call, index).echo + whole.text,
        "logprobs": None,
        "finish_reason": whole.finish_reason,
        "seed": call.seeds[index],
    }
    if call.body.return_token_ids:
        choice |= {"prompt_token_ids": _prompt(call, index).token_ids, "token_ids": whole.token_ids}
    return choice


def _writer(call: CompletionCall) -> ChunkWriter:
    members = call.header.to_json("text_completion")
    if call.wants_usage:
        members["usage"] = None  # until the last chunk
    opening = b""
    for index in range(len(call.preparation.requests)):
        prompt = _prompt(call, index)
        warnings = call.header.warnings_to_json() if index == 0 else {}
        if prompt.echo or warnings or call.body.return_token_ids:
            choice = {"index": index, "text": prompt.echo, "logprobs": None, "finish_reason": None}
            if call.body.return_token_ids:
                choice |= {"prompt_token_ids": prompt.token_ids, "token_ids": []}
            opening += event({**members, "choices": [choice], **warnings})
    return ChunkWriter(
        members,
        COMPLETION_SHAPE,
        opening=opening,
        seeds=call.seeds,
        with_usage=call.wants_usage,
        with_token_ids=call.body.return_token_ids,
    )


def _prompt(call: CompletionCall, index: int) -> PreparedPrompt:
    return call.preparation.prompts[index // call.preparation.n]
