"""POST /v1/distribution: what the model says of every token that may come next, before any parameter."""

import base64
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from engine.interface.errors import EngineUnavailableError
from engine.interface.outputs import GenerationRequest
from engine.interface.sampling_params import SamplingParams
from engine.interface.speculation import NOT_SPECULATING
from server.api.body import run_sized
from server.api.call import run_to_end, start_generation
from server.api.encoding import to_json
from server.api.known_fields import FieldWarning
from server.api.logprobs import LogprobOptions, check_num_logprobs, token_text
from server.api.preparation import PreparedRequest, TextOptions
from server.api.prompts import PreparedPrompt, encode_prompt
from server.api.reply import warnings_to_json
from server.api.requests import is_strict, parse_request, server_state
from server.api.schemas import DistributionRequest, ParsedBody, check_strict
from server.api.token_budget import check_room
from server.api.usage import Usage
from server.auth import cache_salt
from server.middleware import request_context
from server.serving import ServedModel
from server.text import Tokenizer

_BYTES_PER_LOGPROB = 4
_PARAMS = SamplingParams(
    max_tokens=1, temperature=0.0, logprobs=0, all_logprobs=True, ignore_eos=True, seed=0
)


@dataclass(frozen=True, kw_only=True)
class DistributionReply:
    """What the reply says beside the numbers."""

    model: ServedModel
    num_top: int
    usage: Usage
    warnings: tuple[FieldWarning, ...]

    def to_response(self, logprobs: bytes) -> Response:
        """Write the reply; `logprobs` are float32 [vocab_size], little-endian."""
        vocab_size = len(logprobs) // _BYTES_PER_LOGPROB
        head = {"object": "draftline.distribution", "model": self.model.name, "vocab_size": vocab_size}
        members = {"top_logprobs": _top_logprobs(logprobs, self.num_top, self.model.tokenizer)}
        rest = to_json({**members, "usage": self.usage.to_json(), **warnings_to_json(self.warnings)})
        encoded = base64.b64encode(logprobs)  # by hand: json.dumps would look at each of its characters
        content = b'%s,"logprobs":"%s",%s' % (to_json(head)[:-1], encoded, rest[1:])
        return Response(content, media_type="application/json")


async def create_distribution(request: Request) -> Response:
    """Return the logprob of every token behind a prompt, which runs as an answer of one token would."""
    context = request_context(request)
    model, strict = server_state(request).generating_model(), is_strict(request)

    def read(raw: bytes) -> tuple[ParsedBody[DistributionRequest], PreparedRequest]:
        parsed = parse_request(raw, DistributionRequest, model, strict=strict)
        salt = cache_salt(context.tenant, parsed.body.cache_salt)
        prepared = _prepare(parsed.body, model, salt)
        check_strict(prepared.warnings, strict=strict)
        return parsed, prepared

    parsed, preparation, generation = await start_generation(request, read)
    [whole] = await run_to_end(request, generation, num_choices=1)
    if whole.all_logprobs is None:
        raise EngineUnavailableError("the request was aborted by the server")
    reply = DistributionReply(
        model=model,
        num_top=parsed.body.top_logprobs,
        usage=generation.usage,
        warnings=parsed.warnings + preparation.warnings,
    )
    return await run_sized(len(whole.all_logprobs), reply.to_response, whole.all_logprobs)


def _top_logprobs(logprobs: bytes, count: int, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """Return the likeliest tokens in order, of equals the lower id first."""
    values = np.frombuffer(logprobs, "<f4")
    token_ids = np.argsort(-values, kind="stable")[:count].tolist() if count else []
    return [
        {
            "token_id": token_id,
            "token": token_text(tokenizer, token_id),
            "logprob": float(values[token_id]),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }
        for token_id in token_ids
    ]


def _prepare(body: DistributionRequest, model: ServedModel, salt: bytes) -> PreparedRequest:
    check_num_logprobs("top_logprobs", body.top_logprobs)
    token_ids, warnings = encode_prompt(body.prompt, model)
    check_room(token_ids, model, prompt_field="prompt")
    request = GenerationRequest(
        prompt_token_ids=token_ids, params=_PARAMS, cache_salt=salt, speculation=NOT_SPECULATING
    )
    return PreparedRequest(
        requests=(request,),
        prompts=(PreparedPrompt(token_ids=token_ids, seed=0),),
        n=1,
        num_returned=1,
        options=TextOptions(),
        logprobs=LogprobOptions(),
        grammar=None,
        warnings=warnings,
    )
