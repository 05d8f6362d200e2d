"""What completions and chat do alike: read, check, prepare, submit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.engine_client import OutputStream
from engine.interface.errors import QueueFullError, RequestError
from engine.interface.outputs import GenerationRequest, TokenLogprobs
from server.api.body import read_body, run_sized
from server.api.chunks import ChunkShape, ChunkWriter
from server.api.encoding import json_response, large_json_response
from server.api.errors import ApiError
from server.api.generation import Generation
from server.api.limits import INLINE_BYTES
from server.api.logprobs import prompt_logprobs
from server.api.preparation import PreparedRequest
from server.api.prompts import PreparedPrompt
from server.api.renamed_fields import NO_NAMES, renamed, renamed_warnings
from server.api.reply import ReplyHeader, WholeChoice, best_choices, collect
from server.api.requests import Translate, is_strict, parse_request, server_state, unchanged
from server.api.scheduling import Deadline, scheduled
from server.api.schemas import GenerationBody, ParsedBody, ScheduledBody, check_strict
from server.api.sse import while_connected
from server.api.token_scores import ScoredToken
from server.api.under_way import register
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import ServedModel, ServerState
from server.text import Tokenizer

BodyT = TypeVar("BodyT", bound=GenerationBody)
ScheduledT = TypeVar("ScheduledT", bound=ScheduledBody)
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
    def choice_prompts(self) -> list[PreparedPrompt]:
        """The prompt of each choice."""
        return [prompt for prompt in self.preparation.prompts for _ in range(self.preparation.n)]

    @property
    def wants_usage(self) -> bool:
        """True when the stream is to end with a usage chunk."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    def chunk_members(self, kind: str) -> dict[str, object]:
        """Return the top-level members of every chunk of a stream."""
        members = self.header.to_json(kind)
        return {**members, "usage": None} if self.wants_usage else members  # null until the last chunk

    def chunk_writer(
        self,
        members: Mapping[str, object],
        shape: ChunkShape,
        *,
        opening: bytes,
        logprobs: Callable[[Sequence[ScoredToken]], object],
        prompt_event: Callable[[int, Sequence[TokenLogprobs]], bytes],
    ) -> ChunkWriter:
        """Return what writes the stream; `prompt_event` is asked if the prompt is scored."""
        return ChunkWriter(
            members,
            shape,
            opening=opening,
            seeds=[prompt.seed for prompt in self.choice_prompts],
            with_usage=self.wants_usage,
            with_token_ids=self.body.return_token_ids,
            logprobs=logprobs,
            prompt_event=prompt_event if self.preparation.logprobs.scores_prompt else None,
        )

    def prompt_logprobs(self, scores: Sequence[TokenLogprobs]) -> dict[str, object]:
        """Return the member `prompt_logprobs`, or nothing when nobody asked for it."""
        num_top = self.preparation.logprobs.prompt
        if num_top is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(scores, self.tokenizer, num_top=num_top)}

    def choice_extras(self, whole: WholeChoice) -> dict[str, object]:
        """Return the members of a whole choice that only some clients ask for."""
        extras: dict[str, object] = {}
        if self.body.return_provenance:
            extras["provenance"] = [token.to_json() for token in whole.provenance]
        if self.body.return_token_ids:
            extras["token_ids"] = whole.token_ids
        return extras


async def open_call(
    request: Request,
    schema: type[BodyT],
    prepare: Prepare[BodyT],
    *,
    id_prefix: str,
    translate: Translate = unchanged,
    names: Mapping[str, str] = NO_NAMES,
) -> Call[BodyT]:
    """Read and check the request and submit it to the engine.

    `translate` makes the fields of `schema` from those of another API, which `names` calls by its own words.
    Raises ApiError, RequestError, QueueFullError, EngineUnavailableError.
    """
    try:
        call = await _open_call(request, schema, prepare, id_prefix=id_prefix, translate=translate)
    except RequestError as error:
        raise renamed(error, names) from None
    warnings = renamed_warnings(call.header.warnings, names)
    return replace(call, header=replace(call.header, warnings=warnings)) if warnings else call


async def _open_call(
    request: Request, schema: type[BodyT], prepare: Prepare[BodyT], *, id_prefix: str, translate: Translate
) -> Call[BodyT]:
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)

    def read(raw: bytes) -> tuple[ParsedBody[BodyT], PreparedRequest]:
        parsed = parse_request(raw, schema, model, strict=strict, translate=translate)
        if parsed.body.stream_options is not None and not parsed.body.stream:
            raise ApiError(
                400, "stream_options needs stream: true", param="stream_options", code="invalid_value"
            )
        salt = cache_salt(context.tenant, parsed.body.cache_salt)
        prepared = prepare(parsed.body, model, max_choices=state.limits.max_choices, salt=salt)
        check_strict(prepared.warnings, strict=strict)
        return parsed, prepared

    parsed, preparation, generation = await start_generation(request, read)
    return Call(
        body=parsed.body,
        preparation=preparation,
        generation=generation,
        header=ReplyHeader.create(id_prefix, model, parsed.warnings + preparation.warnings),
        tokenizer=model.tokenizer,
    )


async def start_generation(
    request: Request, read: Callable[[bytes], tuple[ParsedBody[ScheduledT], PreparedRequest]]
) -> tuple[ParsedBody[ScheduledT], PreparedRequest, Generation]:
    """Take a place, read the body, and submit what `read` makes of it, on a thread if it is long.

    Raises ApiError, RequestError, QueueFullError, EngineUnavailableError.
    """
    state, context = server_state(request), request_context(request)
    model = state.generating_model()
    state.admission.check(model.engine.stats())
    with state.bodies.holding() as held:
        raw = await read_body(request, held, max_size=state.limits.max_body_size)
        with state.admission.preparing(model.engine.stats()):
            parsed, preparation = await run_sized(model.work_size(len(raw)), read, raw)
            requests = scheduled(preparation.requests, parsed.body, context.caller)
            context.start(
                num_choices=len(requests),
                num_prompt_tokens=sum(len(prompt.token_ids) for prompt in preparation.prompts),
            )
            if preparation.grammar is not None:
                compiling = state.grammars.compile(model.engine, preparation.grammar, tenant=context.tenant)
                await while_connected(request.receive, compiling)
            stream = _generate(state, requests)
    generation = Generation(
        stream,
        preparation,
        tokenizer=model.tokenizer,
        metrics=state.metrics,
        rate=state.admission.rate,
        arrived=context.started,
        deadline=Deadline(parsed.body.deadline_ms, arrived=context.started),
    )
    register(request, generation)
    return parsed, preparation, generation


async def answer_whole(
    request: Request, call: Call[BodyT], reply: Callable[[Call[BodyT], Sequence[WholeChoice]], object]
) -> Response:
    """Run the call and answer with what `reply` makes of its choices.

    Raises ClientDisconnect as soon as nobody waits for them.
    """
    num_choices = len(call.preparation.requests)
    choices = await run_to_end(request, call.generation, num_choices=num_choices)
    means = [call.generation.mean_logprob(index) for index in range(num_choices)]
    choices = best_choices(choices, call.preparation, means)
    size = sum(choice.size for choice in choices)
    respond = json_response if size <= INLINE_BYTES else large_json_response
    return await run_sized(size, lambda: respond(reply(call, choices)))


async def run_to_end(request: Request, generation: Generation, *, num_choices: int) -> Sequence[WholeChoice]:
    """Return all choices once they are complete; raises ClientDisconnect as soon as nobody waits for them."""
    with generation:
        try:
            return await while_connected(request.receive, collect(generation, num_choices))
        finally:
            request_context(request).note_usage(generation.usage, generation.timings)


def _generate(state: ServerState, requests: Sequence[GenerationRequest]) -> OutputStream:
    """Submit the requests; raises ApiError 429 when the engine's queue cannot hold them all."""
    engine = state.generating_model().engine
    try:
        return engine.generate(requests)
    except QueueFullError as error:
        num_choices = len(requests)
        raise state.admission.refusal(str(error), engine.stats(), num_choices=num_choices) from None
