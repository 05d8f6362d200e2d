"""What completions and chat do alike: read, check, prepare, submit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request

from server.api.body import read_body, run_sized
from server.api.errors import ApiError
from server.api.generation import Generation
from server.api.preparation import Preparation
from server.api.reply import ReplyHeader, WholeChoice, collect
from server.api.requests import is_strict, parse_request, server_state
from server.api.schemas import GenerationBody, ParsedBody
from server.api.sse import while_connected
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import ServedModel

BodyT = TypeVar("BodyT", bound=GenerationBody)
_BodyT_contra = TypeVar("_BodyT_contra", bound=GenerationBody, contravariant=True)


class Prepare(Protocol[_BodyT_contra]):
    """prepare_completion or prepare_chat."""

    def __call__(
        self, body: _BodyT_contra, model: ServedModel, *, max_choices: int, salt: bytes
    ) -> Preparation:
        """Return what the engine is to run; raises RequestError."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[BodyT]):
    """A request on its way through the engine."""

    body: BodyT
    preparation: Preparation
    generation: Generation
    header: ReplyHeader

    @property
    def wants_usage(self) -> bool:
        """True when the stream is to end with a usage chunk."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    @property
    def seeds(self) -> list[int]:
        """The seed of each choice."""
        return [prompt.seed for prompt in self.preparation.prompts for _ in range(self.preparation.n)]


async def open_call(
    request: Request, schema: type[BodyT], prepare: Prepare[BodyT], *, id_prefix: str
) -> Call[BodyT]:
    """Read and check the request and submit it to the engine.

    Raises ApiError, RequestError, QueueFullError, EngineUnavailableError.
    """
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)

    def read(raw: bytes) -> tuple[ParsedBody[BodyT], Preparation]:
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
        stream = state.generating_model().engine.generate(preparation.requests)
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
    )


async def run_to_end(request: Request, call: Call[BodyT]) -> Sequence[WholeChoice]:
    """Run the call and return its choices; raises ClientDisconnect as soon as nobody waits for them."""
    with call.generation as generation:
        work = collect(generation, len(call.preparation.requests))
        try:
            return await while_connected(request.receive, work)
        finally:
            request_context(request).note_usage(generation.usage)
