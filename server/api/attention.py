"""POST /v1/attention: which tokens of a prompt look at which, in one layer; with --enable-attention only."""

import asyncio
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from engine.interface.attention import MAX_ATTENTION_TOKENS, AttentionModel
from engine.interface.cancellation import Cancellation
from engine.interface.errors import RequestError
from server.api.body import read_body, run_sized
from server.api.encoding import large_json_response
from server.api.errors import ApiError
from server.api.known_fields import FieldWarning
from server.api.logprobs import token_text
from server.api.prompts import encode_prompt
from server.api.reply import warnings_to_json
from server.api.requests import is_strict, parse_request, server_state
from server.api.schemas import AttentionRequest, check_strict
from server.api.sse import while_connected
from server.api.under_way import register
from server.api.usage import Usage
from server.fair_turns import FairTurns
from server.middleware import request_context
from server.serving import ServedModel

_DECIMALS = 5


@dataclass(frozen=True, kw_only=True)
class _Question:
    """Which layer of which prompt is asked for."""

    token_ids: tuple[int, ...]
    layer: int
    warnings: tuple[FieldWarning, ...]


class AttentionRun:
    """One computation, in its turn, on a thread; whoever leaves ends it before its next layer."""

    def __init__(self, question: _Question, model: AttentionModel, turns: FairTurns, tenant: bytes) -> None:
        self._question = question
        self._model = model
        self._turns = turns
        self._tenant = tenant
        self._task: asyncio.Task[bytes] | None = None
        self._error: Exception | None = None
        self.has_started = False

    @property
    def usage(self) -> Usage:
        """The prompt's tokens, none of which come from a cache."""
        num_tokens = len(self._question.token_ids)
        return Usage(prompt_tokens=num_tokens, completion_tokens=0, cached_tokens=0)

    def end(self, error: Exception) -> None:
        """End it with an error."""
        self._error = error
        if self._task is not None:
            self._task.cancel()

    async def probabilities(self) -> bytes:
        """Return what AttentionModel.attention() does; raises ApiError 429 where too many wait."""
        self._task = asyncio.ensure_future(self._work())
        try:
            return await self._task
        except asyncio.CancelledError:
            raise self._error or asyncio.CancelledError from None

    async def _work(self) -> bytes:
        """Compute on a thread; the turn is over when the thread is free again."""
        async with self._turns.turn(self._tenant):
            self.has_started = True
            cancellation, question = Cancellation(), self._question
            work = asyncio.get_running_loop().run_in_executor(
                None, self._model.attention, question.token_ids, question.layer, cancellation
            )
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                cancellation.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise


async def show_attention(request: Request) -> Response:
    """Return the attention probabilities of one layer for a prompt."""
    state, context = server_state(request), request_context(request)
    model, strict = state.generating_model(), is_strict(request)
    attention = model.attention
    if attention is None:
        message = "/v1/attention is there only when the server was started with --enable-attention"
        raise ApiError(404, message, code="not_enabled")

    def read(raw: bytes) -> _Question:
        parsed = parse_request(raw, AttentionRequest, model, strict=strict)
        question = _read(parsed.body, model, attention)
        check_strict(question.warnings, strict=strict)
        return _Question(
            token_ids=question.token_ids,
            layer=question.layer,
            warnings=parsed.warnings + question.warnings,
        )

    with state.bodies.holding() as held:
        raw = await read_body(request, held, max_size=state.limits.max_body_size)
        question = await run_sized(model.work_size(len(raw)), read, raw)
    context.start(num_choices=1, num_prompt_tokens=len(question.token_ids))
    run = AttentionRun(question, attention, state.attention_turns, context.tenant)
    register(request, run)
    found = await while_connected(request.receive, run.probabilities())
    context.note_usage(run.usage)
    return await run_sized(len(found), lambda: large_json_response(_reply(question, found, model, attention)))


def _read(body: AttentionRequest, model: ServedModel, attention: AttentionModel) -> _Question:
    if not 0 <= body.layer < attention.num_layers:
        shown = body.layer if abs(body.layer) < 10**20 else "a far larger number"
        message = f"layer must be between 0 and {attention.num_layers - 1}, got {shown}"
        raise RequestError(message, param="layer")
    token_ids, warnings = encode_prompt(body.prompt, model)
    limit = min(MAX_ATTENTION_TOKENS, model.engine.limits.max_model_len)
    if len(token_ids) > limit:
        raise RequestError(
            f"prompt has {len(token_ids)} tokens, the limit of /v1/attention is {limit}", param="prompt"
        )
    return _Question(token_ids=token_ids, layer=body.layer, warnings=warnings)


def _reply(
    question: _Question, found: bytes, model: ServedModel, attention: AttentionModel
) -> dict[str, object]:
    num_tokens = len(question.token_ids)
    shape = (attention.num_heads, num_tokens, num_tokens)
    heads = np.frombuffer(found, "<f4").reshape(shape).astype(np.float64).round(_DECIMALS)
    return {
        "object": "draftline.attention",
        "model": model.name,
        "num_layers": attention.num_layers,
        "num_heads": attention.num_heads,
        "layer": question.layer,
        "tokens": [
            {"token_id": token_id, "text": token_text(model.tokenizer, token_id)}
            for token_id in question.token_ids
        ],
        "attention": [[row[: place + 1].tolist() for place, row in enumerate(head)] for head in heads],
        **warnings_to_json(question.warnings),
    }
