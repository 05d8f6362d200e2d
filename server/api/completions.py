"""POST /v1/completions."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.outputs import TokenLogprobs
from server.api.call import Call, answer_whole, open_call
from server.api.chunks import COMPLETION_SHAPE, ChunkWriter, event
from server.api.logprobs import completion_logprobs
from server.api.preparation import prepare_completion
from server.api.prompts import PreparedPrompt
from server.api.reply import WholeChoice
from server.api.schemas import CompletionRequest
from server.api.sse import EventStream
from server.api.token_scores import ScoredToken, score_prompt
from server.middleware import request_context

CompletionCall = Call[CompletionRequest]


async def create_completion(request: Request) -> Response:
    """Continue one prompt or several, streamed or whole."""
    call = await open_call(request, CompletionRequest, prepare_completion, id_prefix="cmpl")
    if call.body.stream:
        return EventStream(call.generation, _writer(call), request_context(request))
    return await answer_whole(request, call, _reply)


def _reply(call: CompletionCall, choices: Sequence[WholeChoice]) -> dict[str, object]:
    return {
        **call.header.to_json("text_completion"),
        "choices": [_choice(call, i, whole) for i, whole in enumerate(choices)],
        "usage": call.generation.usage.to_json(),
        **call.header.warnings_to_json(),
    }


def _choice(call: CompletionCall, index: int, whole: WholeChoice) -> dict[str, object]:
    prompt = call.preparation.prompts[index // call.preparation.num_returned]
    tokens = whole.logprobs
    if call.preparation.logprobs.echo is not None:
        tokens = _echoed_tokens(call, prompt, whole.prompt_logprobs) + tokens
    choice: dict[str, object] = {
        "index": index,
        "text": prompt.echo + whole.text,
        "logprobs": _logprobs(call, tokens),
        "finish_reason": whole.finish_reason,
        "seed": prompt.seed,
        **call.prompt_logprobs(whole.prompt_logprobs),
        **call.choice_extras(whole),
    }
    if call.body.return_token_ids:
        choice["prompt_token_ids"] = prompt.token_ids
    return choice


def _logprobs(call: CompletionCall, tokens: Sequence[ScoredToken]) -> dict[str, object] | None:
    num_top = call.preparation.logprobs.answer
    return None if num_top is None else completion_logprobs(tokens, call.tokenizer, num_top=num_top)


def _echoed_tokens(
    call: CompletionCall, prompt: PreparedPrompt, scores: Sequence[TokenLogprobs]
) -> list[ScoredToken]:
    return score_prompt(
        prompt.token_ids,
        scores,
        call.tokenizer,
        num_hidden=prompt.num_hidden,
        skip_special_tokens=prompt.skip_special_tokens,
    )


def _writer(call: CompletionCall) -> ChunkWriter:
    members, prompts = call.chunk_members("text_completion"), call.choice_prompts
    logprobs = call.preparation.logprobs

    def prompt_event(index: int, scores: Sequence[TokenLogprobs]) -> bytes:
        with_echo = logprobs.echo is not None
        tokens = _echoed_tokens(call, prompts[index], scores) if with_echo else []
        choice = {
            "index": index,
            "text": prompts[index].echo,
            "logprobs": _logprobs(call, tokens) if with_echo else None,
            "finish_reason": None,
            **call.prompt_logprobs(scores),
        }
        return event({**members, "choices": [choice]})

    return call.chunk_writer(
        members,
        COMPLETION_SHAPE,
        opening=_opening(call, members, with_echo=not logprobs.scores_prompt),
        logprobs=lambda tokens: _logprobs(call, tokens),
        prompt_event=prompt_event,
    )


def _opening(call: CompletionCall, members: dict[str, object], *, with_echo: bool) -> bytes:
    """Return the events that need nothing of the engine; an echo with logprobs has to wait for it."""
    events = b""
    for index, prompt in enumerate(call.choice_prompts):
        warnings = call.header.warnings_to_json() if index == 0 else {}
        echo = prompt.echo if with_echo else ""
        if echo or warnings or call.body.return_token_ids:
            choice = {"index": index, "text": echo, "logprobs": None, "finish_reason": None}
            if call.body.return_token_ids:
                choice |= {"prompt_token_ids": prompt.token_ids, "token_ids": []}
            events += event({**members, "choices": [choice], **warnings})
    return events
