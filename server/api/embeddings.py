"""POST /v1/embeddings: hidden states of texts, pooled and of length 1."""

from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import RequestError
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import NOT_SPECULATING
from server.api.body import read_body, run_sized
from server.api.embedding_reply import EmbeddingReply
from server.api.embedding_run import EmbeddingRun
from server.api.fields import Prompt
from server.api.known_fields import FieldWarning
from server.api.limits import MAX_EMBEDDING_VALUES, MAX_WARNINGS
from server.api.prompts import check_token_ids, encode_text, loss_warnings
from server.api.requests import is_strict, parse_request, server_state
from server.api.scheduling import Deadline, scheduled
from server.api.schemas import EmbeddingRequest, check_strict
from server.api.sse import while_connected
from server.api.under_way import register
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import EmbeddingModel, ServedModel


@dataclass(frozen=True, kw_only=True)
class PreparedEmbeddings:
    """What the engine is to run, and how its vectors are returned."""

    deadline_ms: int | None
    requests: tuple[GenerationRequest, ...]
    dimensions: int
    is_base64: bool
    warnings: tuple[FieldWarning, ...]


async def create_embeddings(request: Request) -> Response:
    """Return a vector for each text, equal to the bit whatever runs beside it."""
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)

    def read(raw: bytes) -> PreparedEmbeddings:
        parsed = parse_request(raw, EmbeddingRequest, model, strict=strict)
        salt = cache_salt(context.tenant, parsed.body.cache_salt)
        prepared = prepare_embeddings(parsed.body, model, salt=salt, warnings=parsed.warnings)
        prepared = replace(prepared, requests=scheduled(prepared.requests, parsed.body, context.caller))
        check_strict(prepared.warnings, strict=strict)
        return prepared

    state.admission.check(model.engine.stats())
    with state.bodies.holding() as held:
        raw = await read_body(request, held, max_size=state.limits.max_body_size)
        with state.admission.preparing(model.engine.stats()):
            prepared = await run_sized(model.work_size(len(raw)), read, raw)
    num_tokens = sum(len(one.prompt_token_ids) for one in prepared.requests)
    context.start(num_choices=1, num_prompt_tokens=num_tokens)
    run = EmbeddingRun(
        prepared.requests,
        model.engine,
        admission=state.admission,
        metrics=state.metrics,
        deadline=Deadline(prepared.deadline_ms, arrived=context.started),
    )
    register(request, run)
    outputs = await while_connected(request.receive, run.outputs())
    usage = run.usage
    context.note_usage(usage)
    reply = EmbeddingReply(
        model=model.name,
        dimensions=prepared.dimensions,
        is_base64=prepared.is_base64,
        usage=usage,
        warnings=prepared.warnings,
    )
    vectors = [output.embedding or b"" for output in outputs]
    return await run_sized(sum(map(len, vectors)), reply.to_response, vectors)


def prepare_embeddings(
    body: EmbeddingRequest, model: ServedModel, *, salt: bytes, warnings: tuple[FieldWarning, ...]
) -> PreparedEmbeddings:
    """Tokenise the texts of a request; raises RequestError."""
    embedding = model.embedding
    if embedding is None:
        raise RequestError(model.why_no_embeddings, param="model", code="unsupported_parameter")
    dimensions, more = _dimensions(body.dimensions, embedding)
    if dimensions * len(body.input) > MAX_EMBEDDING_VALUES:
        raise RequestError(
            f"input has {len(body.input)} texts of {dimensions} values each, the limit is "
            f"{MAX_EMBEDDING_VALUES} values; send them in several requests",
            param="input",
        )
    params = SamplingParams(max_tokens=0, pooling=embedding.pooling)
    requests = [
        GenerationRequest(
            prompt_token_ids=_token_ids(text, f"input[{number}]", model, embedding),
            params=params,
            cache_salt=salt,
            speculation=NOT_SPECULATING,
        )
        for number, text in enumerate(body.input)
    ]
    lost = [
        warning
        for number, text in enumerate(body.input)
        if text.text is not None
        for warning in loss_warnings(text.text, model, param=f"input[{number}]")
    ]
    return PreparedEmbeddings(
        deadline_ms=body.deadline_ms,
        requests=tuple(requests),
        dimensions=dimensions,
        is_base64=body.encoding_format == "base64",
        warnings=(*warnings, *more, *lost[:MAX_WARNINGS]),
    )


def _dimensions(asked: int | None, embedding: EmbeddingModel) -> tuple[int, tuple[FieldWarning, ...]]:
    """Return how many values a vector is to have, and what speaks against it."""
    size = embedding.hidden_size
    if asked is None or asked == size:
        return size, ()
    if not 1 <= asked <= size:
        message = f"dimensions must be between 1 and {size}, the model's hidden size, got {asked}"
        raise RequestError(message, param="dimensions")
    if embedding.is_matryoshka:
        return asked, ()
    message = f"dimensions: the model is not known to be trained so that its first {asked} values stand alone"
    return asked, (FieldWarning(param="dimensions", message=message),)


def _token_ids(text: Prompt, where: str, model: ServedModel, embedding: EmbeddingModel) -> tuple[int, ...]:
    limit = model.engine.limits.max_model_len
    if text.text is None:
        check_token_ids(text.token_ids, model.engine.limits.vocab_size, param=where)
        token_ids = text.token_ids
    else:
        token_ids = encode_text(text.text, model, param=where)
        if not token_ids:
            raise RequestError(f"{where}: the model has no token for any of it", param=where)
        if embedding.suffix_token_id is not None:
            token_ids = (*token_ids, embedding.suffix_token_id)
    if len(token_ids) > limit:
        raise RequestError(
            f"this model's maximum context length is {limit} tokens; {where} has {len(token_ids)}",
            param=where,
            code="context_length_exceeded",
        )
    return token_ids
