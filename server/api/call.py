"""What completions and chat do alike: read, check, prepare, submit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.engine_client import OutputStream
from engine.interface.errors import QueueFullError
from server.api.body import read_body, run_sized
from server.api.encoding import json_response, large_json_response
from server.api.errors import ApiError, queue_full
from server.api.generation import Generation
from server.api.limits import INLINE_BYTES
from server.api.preparation import PreparedRequest
from server.api.reply import ReplyHeader, WholeChoice, best_choices, collect
from server.api.requests import is_strict, parse_request, server_state
from server.api.schemas import GenerationBody, ParsedBody
from server.api.sse import while_connected
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import ServedModel, ServerState
from server.text import Tokenizer

BodyT = TypeVar("BodyT", bound=GenerationBody)
_BodyT_contra = TypeVar("_BodyT_contra", bound=GenerationBody, contravariant=True)


class Prepare(Protocol[_BodyT_contra]):
    """prepare_completion or prepare_chat."""

    def __call__(
        self, body: _BodyT_contra, model: ServedModel, *, max_choices: int, salt: bytes
    ) -> PreparedRequest:
        """Return what the engine is to run; raises RequestError."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[BodyT]):
    """A request on its way through the engine."""

    body: BodyT
    preparation: PreparedRequest
    generation: Generation
    header: ReplyHeader
    tokenizer: Tokenizer

    @property
    def wants_usage(self) -> bool:
        """True when the stream is to end with a usage chunk."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage


async def open_call(
    request: Request, schema: type[BodyT], prepare: Prepare[BodyT], *, id_prefix: str
) -> Call[BodyT]:
    """Read and check the request and submit it to the engine.

    Raises ApiError, RequestError, QueueFullError, EngineUnavailableError.
    """
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)

    def read(raw: bytes) -> tuple[ParsedBody[BodyT], PreparedRequest]:
        parsed = parse_request(raw, schema, model, strict=strict)
        if parsed.body.stream_options is not None and not parsed.body.stream:
            raise ApiError(
                400, "stream_options needs stream: true", param="stream_options", code="invalid_value"
            )
        salt = cache_salt(context.tenant, parsed.body.cache_salt)
        return parsed, prepare(parsed.body, model, max_choices=state.limits.max_choices, salt=salt)

    with state.admission.preparing(model.engine.stats()):
        raw = await read_body(request, max_size=state.limits.max_body_size)
        parsed, preparation = await run_sized(len(raw), read, raw)
        if preparation.grammar is not None:
            await state.grammars.compile(model.engine, preparation.grammar)
        stream = _generate(state, preparation)
    return Call(
        body=parsed.body,
        preparation=preparation,
        generation=Generation(
            stream,
            preparation,
            tokenizer=model.tokenizer,
            metrics=state.metrics,
            rate=state.admission.rate,
            arrived=context.started,
        ),
        header=ReplyHeader.create(id_prefix, model, parsed.warnings),
        tokenizer=model.tokenizer,
    )


async def answer_whole(
    request: Request, call: Call[BodyT], reply: Callable[[Call[BodyT], Sequence[WholeChoice]], object]
) -> Response:
    """Run the call and answer with what `reply` makes of its choices.

    Raises ClientDisconnect as soon as nobody waits for them.
    """
    choices = await _run_to_end(request, call)
    size = sum(choice.size for choice in choices)
    respond = json_response if size <= INLINE_BYTES else large_json_response
    return await run_sized(size, lambda: respond(reply(call, choices)))


async def _run_to_end(request: Request, call: Call[BodyT]) -> Sequence[WholeChoice]:
    num_choices = len(call.preparation.requests)
    with call.generation as generation:
        try:
            choices = await while_connected(request.receive, collect(generation, num_choices))
        finally:
            request_context(request).note_usage(generation.usage)
    means = [generation.mean_logprob(index) for index in range(num_choices)]
    return best_choices(choices, call.preparation, means)


def _generate(state: ServerState, preparation: PreparedRequest) -> OutputStream:
    """Submit the requests; raises ApiError 429 when the engine's queue cannot hold them all."""
    try:
        return state.generating_model().engine.generate(preparation.requests)
    except QueueFullError as error:
        seconds = state.admission.rate.seconds_for(len(preparation.requests))
        raise queue_full(str(error), retry_after=seconds) from None
